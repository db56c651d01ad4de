"""A Hub on this machine: an HTTP server that keeps what is uploaded, and every request that it gets."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubStandIn:
    """What the server knows.

    Attributes:
        files: content by repository and path.
        requests: "METHOD /path" of every request, in order; and `tokens`, the authorisation of each.
        refuse: status with which to answer all requests, or None.
    """

    def __init__(self):
        self.files, self.requests, self.tokens, self.bodies, self.refuse = {}, [], [], [], None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def download(self, repo_id, folder):
        """Writes what a repository holds into a folder."""
        folder.mkdir()
        for name, content in self.files[repo_id].items():
            (folder / name).write_bytes(content)
        return folder

    def create(self, body):
        name = body["name"] if not body.get("organization") else f"{body['organization']}/{body['name']}"
        repo_id = name if "/" in name else f"me/{name}"
        self.files.setdefault(repo_id, {})
        return {"url": f"{self.endpoint}/{repo_id}", "name": repo_id, "id": repo_id}

    def commit(self, repo_id, lines):
        for line in lines:
            if line["key"] == "file":
                self.files[repo_id][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return {"success": True, "commitUrl": f"{self.endpoint}/{repo_id}/commit/{COMMIT}", "commitOid": COMMIT}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def record(self):
        path = self.path.partition("?")[0]
        # What huggingface_hub asks about itself once a day is no part of what is tested.
        if path != "/api/agent-harnesses":
            self.server.hub.requests.append(f"{self.command} {path}")
            self.server.hub.tokens.append(self.headers.get("Authorization"))
        return path.strip("/").split("/")

    def do_POST(self):
        parts, hub = self.record(), self.server.hub
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if hub.refuse:
            return self.answer(hub.refuse)
        lines = [json.loads(line) for line in content.splitlines()]
        hub.bodies.append(lines)
        if parts == ["api", "repos", "create"]:
            reply = hub.create(lines[0])
        elif parts == ["api", "validate-yaml"]:
            reply = {"errors": [], "warnings": []}
        elif parts[4] == "preupload":
            modes = [{"path": file["path"], "uploadMode": "regular"} for file in lines[0]["files"]]
            reply = {"files": [{"shouldIgnore": False, **mode} for mode in modes]}
        elif parts[4] == "commit":
            reply = hub.commit("/".join(parts[2:4]), lines)
        return self.answer(200, json.dumps(reply).encode(), Content_Type="application/json")

    def do_GET(self):
        parts, hub = self.record(), self.server.hub
        if hub.refuse:
            return self.answer(hub.refuse)
        content = hub.files.get("/".join(parts[:2]), {}).get(parts[-1]) if parts[2:3] == ["resolve"] else None
        if content is None:
            return self.answer(404, X_Error_Code="EntryNotFound")
        return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')

    do_HEAD = do_GET
