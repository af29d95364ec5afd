"""Loyalty points as a participant, in memory: python3 examples/participant.py 8080. A real one keeps DONE and POINTS in its database."""
import json, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
POINTS, DONE, LOCK = {"alice": 500, "bob": 0}, {}, threading.Lock()  # DONE: (gid, branch) -> {op: HTTP status}

def carry_out(op, branch, points, customer):
    done = DONE.setdefault(branch, {})
    if op in done or (op == "try" and "cancel" in done):
        return done.get(op, 409)  # A repeat gets the same answer; a try behind its cancel is too late.
    if (op == "confirm" and (done.get("try") != 200 or "cancel" in done)) or (op == "cancel" and "confirm" in done):
        return 500  # No coordinator asks this: neither done nor refused.
    if op == "try" and POINTS.get(customer, 0) < points:
        return done.setdefault(op, 409)
    if op == "try" or (op == "cancel" and done.get("try") == 200):
        POINTS[customer] += -points if op == "try" else points
    return done.setdefault(op, 200)

class Participant(BaseHTTPRequestHandler):
    def do_POST(self):
        branch = (self.headers["Holdfast-Gid"], self.headers["Holdfast-Branch"])
        op, payload = self.path.strip("/"), json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK:
            known = op in ("try", "confirm", "cancel") and isinstance(payload["points"], int) and payload["points"] > 0
            status = carry_out(op, branch, payload["points"], payload["customer"]) if known else 400
        self.send_response(status)
        self.end_headers()
        if status == 409:  # Words for people; that it is refused stands in the status.
            self.wfile.write(b'{"code": "too_few_points", "message": "not that many points, or too late"}')

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Participant).serve_forever()
