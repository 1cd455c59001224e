"""`python -m virtfn.web LAB PORT`: serve HTTP for a lab that runs until standard input ends. For `virtfn up --http`.

Standard output gets one line: where it listens, or the name of an errno and what is wrong.
"""

from __future__ import annotations

import sys

from virtfn.machine.ports import VirtfnError
from virtfn.web.serve import drop_token, listen, make_token, serve


def main(arguments: list[str]) -> int:
    """Serve; first say where, or what is wrong."""
    lab, port = arguments
    try:
        listener = listen(int(port))
        token = make_token(lab)
    except VirtfnError as error:
        print(error.errno_name or "EIO", error, flush=True)
        return 1
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    try:
        serve(lab, listener, token, until_stdin_ends=True)
    finally:
        drop_token(lab, token)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
