"""orbit images and orbit runtimes prepare, against one process and against six."""

import pytest

from tests import imaging
from tests.cli.conftest import Orbit
from tests.e2e.server import NovaServer

pytestmark = pytest.mark.skipif(bool(imaging.obstacle("tar")), reason=imaging.obstacle("tar"))


def test_an_image_is_made_where_functions_run(orbit: Orbit, nova_server: NovaServer) -> None:
    imaging.image("custom", "tar")
    images = nova_server.data_dir / "images"
    images.mkdir(exist_ok=True)
    (images / "stems").symlink_to(imaging.cache() / "stems")  # packages that need not be fetched once more
    assert orbit("images", "list", "-o", "json").ok().json["items"] == []

    made = orbit("runtimes", "prepare", "custom", "--backend", "docker", "-o", "json").ok().json
    assert (made["runtime"], made["form"], made["status"]) == ("custom", "tar", "ready")
    [image] = orbit("images", "list", "-o", "json").ok().json["items"]
    assert image == made
    assert (images / f"custom-{image['digest']}" / "rootfs.tar").exists()
    assert "is ready" in orbit("runtimes", "prepare", "custom", "--backend", "docker").ok().out

    refused = orbit("runtimes", "prepare", "wasm", "--backend", "docker")
    assert refused.code != 0
    assert "no image recipe" in refused.err
    assert "backend" in orbit("runtimes", "prepare", "custom", "--backend", "sandbox").err
