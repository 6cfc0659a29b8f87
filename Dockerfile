# One image for the monitor and for a federation's aggregator: docker build -t tbmon .
# It can run with a read-only root; only /tmp and the folder of the database have to be writable.
ARG PYTHON=python:3.12-slim

FROM $PYTHON AS build
WORKDIR /app
COPY requirements.txt ./
RUN pip install --no-cache-dir --target packages -r requirements.txt
COPY LICENSE tbmon.py aggregator.py ./
COPY static static
# Compiled here, since the user below may write nothing; "unchecked", since nothing changes in an image.
RUN python -m compileall -q --invalidation-mode unchecked-hash tbmon.py aggregator.py

FROM $PYTHON
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tbmon" \
      org.opencontainers.image.description="Watches one TrueBit node and keeps what it did on its own machine" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# Two arenas: with more, glibc keeps about 7 MiB that the threads no longer use.
ENV HOST=0.0.0.0 MALLOC_ARENA_MAX=2 PYTHONPATH=/app/packages
WORKDIR /app
COPY --from=build /app ./
# A new volume takes owner and mode of the folder it is mounted on.
RUN mkdir -m 700 /app/data /data && chown 10001:10001 /app/data /data
USER 10001:10001
EXPOSE 8090
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s CMD ["python", "-m", "tbmon", "healthcheck"]
ENTRYPOINT ["python", "-m"]
CMD ["tbmon"]
