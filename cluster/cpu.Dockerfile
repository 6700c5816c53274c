# docker build -f cluster/cpu.Dockerfile -t <YOUR-REGISTRY>/vidray:cpu .
FROM rayproject/ray:2.60.0-py311-cpu
USER 1000
RUN mkdir -p /home/ray/vidray
WORKDIR /home/ray/vidray
# For models on CPUs. A run that starts Ray itself sets them.
ENV OMP_WAIT_POLICY=PASSIVE MALLOC_ARENA_MAX=1
# What changes seldom comes first: a change of the code reaches only the last two steps.
COPY --chown=1000:100 pyproject.toml constraints.txt cluster/requirements.py ./
# The index has builds without CUDA, of the same versions: gigabytes less.
RUN pip install --no-cache-dir -c constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu torch torchvision
RUN python requirements.py s3 gcs azure > requirements.txt \
 && pip install --no-cache-dir -c constraints.txt -r requirements.txt
COPY --chown=1000:100 README.md LICENSE cluster/restart.sh ./
COPY --chown=1000:100 vidray vidray
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
