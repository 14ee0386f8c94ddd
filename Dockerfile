# The job service on the CPU: docker compose up (compose.yaml brings a PostgreSQL along).
# A GPU needs torch's CUDA wheels, which the lock's are by default, and `--gpus all`.
FROM python:3.11-slim-bookworm AS built
WORKDIR /source
RUN python -m venv /opt/diffdoctor
ENV PATH=/opt/diffdoctor/bin:$PATH
COPY requirements.lock .
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.lock
COPY . .
# No build isolation: the lock pins setuptools, so the build needs nothing else from outside.
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
# Not root: a job's program reads what strangers upload.
RUN useradd --uid 10001 --create-home diffdoctor \
    && install -d -o diffdoctor -g diffdoctor -m 700 /service
COPY --from=built /opt/diffdoctor /opt/diffdoctor
ENV PATH=/opt/diffdoctor/bin:$PATH PYTHONUNBUFFERED=1
USER diffdoctor
WORKDIR /home/diffdoctor
VOLUME /service
EXPOSE 8765
# Trainers end with the container, and go on from their checkpoints when it is started again: give
# it the same --hostname each time, by which it knows that they are not another machine's.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8765/health')"]
ENTRYPOINT ["diffdoctor"]
CMD ["serve", "--root", "/service", "--host", "0.0.0.0", "--log", "json"]
