"""Answers every request with who it is: the smallest app that shows a push has worked."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        release = os.environ.get("HEPHY_RELEASE", "no release")
        greeting = os.environ.get("GREETING", "Hello from hephy")
        body = f"{greeting}: {release} on {os.uname().machine}\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, text, *values):
        print(self.command, self.path, flush=True)


if __name__ == "__main__":
    port = int(os.environ["PORT"])
    print(f"listening on port {port}", flush=True)
    ThreadingHTTPServer(("", port), Hello).serve_forever()
