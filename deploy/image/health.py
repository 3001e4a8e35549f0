"""Whether a plane is well, as an exit code: ``health.py http://127.0.0.1:9000/health/ready`` or ``grpc://127.0.0.1:9090``.

For health checks of containers: images have no curl and no grpc_health_probe. 0: well. 1: not, with the reason on stderr.
"""

import http.client
import sys
from urllib.parse import urlsplit

TIMEOUT_S = 4.0


def over_http(host: str, path: str) -> str:
    """What is wrong, or nothing."""
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path or "/")
        status = connection.getresponse().status
    finally:
        connection.close()
    return "" if status == 200 else f"{path}: status {status}"


def over_grpc(host: str) -> str:
    """What is wrong, or nothing."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(host) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    serving = health_pb2.HealthCheckResponse.SERVING
    return "" if answer.status == serving else health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def main(url: str) -> int:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "grpc"):
        print(f"{url}: http://… or grpc://… is expected", file=sys.stderr)
        return 2
    try:
        wrong = over_http(parts.netloc, parts.path) if parts.scheme == "http" else over_grpc(parts.netloc)
    except Exception as exc:  # whatever it is, the plane cannot be reached
        wrong = str(exc)
    if wrong:
        print(wrong, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
