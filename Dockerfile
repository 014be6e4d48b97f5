# Serves the pack, or the folder of versions, that is mounted at /models:
#   docker build -t tf_packnet .
#   docker run -p 8501:8501 -v $PWD/models/digits:/models:ro tf_packnet --name=digits
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir "/src[serve]"
USER 65534
ENV HOME=/tmp
EXPOSE 8501
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://localhost:8501/health')"]
ENTRYPOINT ["tf-packnet", "serve", "--host=0.0.0.0", "--pack=/models"]
