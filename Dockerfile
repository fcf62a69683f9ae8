# hyperconformer serve, on CPUs.
#   docker build --tag hyperconformer .
#   docker run --publish 127.0.0.1:8000:8000 hyperconformer
#   docker run --publish 127.0.0.1:8000:8000 --volume ./results/model:/model:ro \
#     hyperconformer --model /model
FROM python:3.12-slim
# pip compiles KenLM, and the first start the C++ kernels.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY setup.py pyproject.toml README.md ./
COPY hyperconformer hyperconformer
COPY hparams hparams
COPY recipes recipes
COPY pretrained pretrained
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    ".[serve,lm]"
RUN useradd --create-home server
USER server
WORKDIR /home/server
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", \
    "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
# A container has its own loopback: the port is published by --publish.
ENTRYPOINT ["hyperconformer", "serve", "--host", "0.0.0.0"]
