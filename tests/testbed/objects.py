"""An object store of the tests' own: moto's S3 over HTTP on a free port, which can die and rise again."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server

KEYS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "opensesame-0", "AWS_DEFAULT_REGION": "us-east-1"}


class Store:
    """A bucket `runs`. Its objects outlive its server; `before_put` is called with how many objects came before."""

    def __init__(self) -> None:
        self.before_put: Callable[[int], None] = lambda count: None
        self.puts = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server: BaseWSGIServer | None = None
        self.port = 0
        self.rise()
        urlopen(Request(f"{self.env['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")).close()  # of this process
        self.client.create_bucket(Bucket="runs")

    @property
    def env(self) -> dict[str, str]:
        """What a job needs to reach it."""
        return {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    @property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=KEYS["AWS_DEFAULT_REGION"],
        )

    def keys(self, url: str) -> list[str]:
        """Of the objects at and below a URL."""
        rows = self.client.list_objects_v2(Bucket="runs", Prefix=url.removeprefix("s3://runs/")).get("Contents", [])
        return [row["Key"] for row in rows]

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket="runs", Key=key, Body=content)

    def get(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket="runs", Key=key)["Body"].read()
        return content

    def rise(self) -> None:
        self._server = make_server("127.0.0.1", self.port, self._answer, threaded=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def die(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, request: Mapping[str, Any], start: Any) -> Iterable[bytes]:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].count("/") > 1:
            self.before_put(self.puts)
            self.puts += 1
        if self._server is None:
            raise ConnectionAbortedError("the store is dead")
        answer: Iterable[bytes] = self._app(request, start)
        return answer


@contextmanager
def object_store() -> Iterator[Store]:
    store = Store()
    try:
        yield store
    finally:
        store.die()
