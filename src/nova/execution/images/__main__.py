"""``python -m nova.execution.images FOLDER RUNTIME FORM``: make one image, steps and failure as lines of JSON."""

import sys
from pathlib import Path

from nova.errors import NovaError, as_refusal
from nova.execution.images.apart import tell_failure, tell_step
from nova.execution.images.images import FORMS, Images
from nova.runtimes.registry import Runtimes


def main(folder: str, runtime: str, form: str) -> int:
    try:
        made = next(one for one in FORMS if one == form)
        Images(Path(folder), Runtimes()).build_now(runtime, made, tell_step)
    except NovaError as error:
        tell_failure(error)
    except OSError as error:
        tell_failure(as_refusal(error) or NovaError("dependency_unavailable", str(error)))
    return 0


sys.exit(main(*sys.argv[1:]))
