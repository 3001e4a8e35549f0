"""What crosses from one plane to another: calls, requests and reports over gRPC."""

import os

# gRPC's older poller hands what arrives straight to the thread that waits for it; the newer one wakes a thread in between, which
# made a single call about a third slower here. It is read when gRPC starts, so it has to be said before; a version that does not
# know these names any more ignores them.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")

# Processes that speak gRPC fork only to start programs, which is none of gRPC's business; it would complain of it on stderr.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
