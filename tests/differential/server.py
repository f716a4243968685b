"""One HTTP server on loopback with all that a build may want from a network: base images, files, git repositories."""

import http.server
import json
import os
import re
import subprocess
import threading

from images import Layout

INDEX = "application/vnd.oci.image.index.v1+json"


class Server(http.server.ThreadingHTTPServer):
    """`images` maps names to layout directories; `files` and `git` are directories."""

    daemon_threads = True

    def __init__(self, files, git):
        super().__init__(("127.0.0.1", 0), Handler)
        self.images = {}
        self.files = files
        self.git = git
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def host(self):
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            pass  # Whoever asked has gone.

    def answer(self, status, body=b"", kind="application/octet-stream", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        if self.path.startswith("/v2/"):
            self.registry()
        elif self.path.startswith("/git/"):
            self.git_backend(b"")
        elif self.path.startswith("/files/"):
            self.file()
        else:
            self.answer(404)

    do_HEAD = do_GET

    def do_POST(self):
        self.git_backend(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def registry(self):
        if self.path.split("?")[0] == "/v2/":
            return self.answer(200, b"{}", "application/json")
        found = re.fullmatch(r"/v2/(?:.*/)?([^/]+)/(manifests|blobs)/([^/?]+)(\?.*)?", self.path)
        directory = found and self.server.images.get(found[1])
        if not directory:
            return self.answer(404, b'{"errors":[]}', "application/json")
        layout, what = Layout(directory), found[3]
        if not what.startswith("sha256:"):
            with open(os.path.join(directory, "index.json"), encoding="utf-8") as file:
                what = json.load(file)["manifests"][-1]["digest"]
        try:
            body = layout.blob(what)
        except FileNotFoundError:
            return self.answer(404, b'{"errors":[]}', "application/json")
        kind = "application/octet-stream"
        if found[2] == "manifests":
            kind = json.loads(body).get("mediaType", INDEX)
        self.answer(200, body, kind, Docker_Content_Digest=what)

    def file(self):
        path = os.path.join(self.server.files, os.path.basename(self.path.split("?")[0]))
        if not os.path.isfile(path):
            return self.answer(404)
        with open(path, "rb") as file:
            self.answer(200, file.read(), Last_Modified="Wed, 01 Jan 2020 00:00:00 GMT")

    def git_backend(self, body):
        path, _, query = self.path[len("/git"):].partition("?")
        environment = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": self.server.git, "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command, "GIT_CONFIG_GLOBAL": "/dev/null",
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)), "HOME": "/",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""), "REMOTE_ADDR": "127.0.0.1",
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200").split()[0])
        self.answer(status, content, headers.pop("Content-Type", "text/plain"))
