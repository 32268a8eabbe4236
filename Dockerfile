# Images of the server. The model is downloaded at the first start, into the volume /var/lib/sglang.
#
#     docker build -t sglang .                      the CPU runtime
#     docker build -t sglang:cuda --target cuda .   with torch and Triton, for NVIDIA GPUs
#     docker run -p 127.0.0.1:30000:30000 -v sglang:/var/lib/sglang sglang
#
# Flags follow the name of the image, or come as variables: -e SGLANG_MODEL_PATH=... (docs/operating.md).
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS base
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --home-dir /var/lib/sglang --create-home --shell /usr/sbin/nologin sglang
ENV PATH=/opt/sglang/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/lib/sglang/cache \
    HF_HOME=/var/lib/sglang/huggingface \
    SGLANG_HOST=0.0.0.0
WORKDIR /var/lib/sglang
VOLUME /var/lib/sglang
EXPOSE 30000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:30000/health', timeout=4)"]
ENTRYPOINT ["sglang", "serve"]

# What compiles stays behind in this stage.
FROM base AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY . /src
WORKDIR /src
RUN python3 -m venv /opt/sglang \
 && /opt/sglang/bin/pip install --no-cache-dir --no-compile ./csrc ".[srt]"

FROM build AS build-cuda
RUN /opt/sglang/bin/pip install --no-cache-dir --no-compile "torch==2.13.0" \
 && /opt/sglang/bin/pip install --no-cache-dir --no-compile ".[srt,cuda]"

# Triton compiles its launchers when a model is loaded, so the compiler comes along.
FROM base AS cuda
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev python3-dev \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build-cuda /opt/sglang /opt/sglang
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    SGLANG_DEVICE=cuda
USER sglang

FROM build AS build-cpu
RUN /opt/sglang/bin/pip uninstall --yes --quiet pip setuptools

FROM base AS cpu
COPY --from=build-cpu /opt/sglang /opt/sglang
USER sglang
