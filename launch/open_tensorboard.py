"""TensorBoard of the runs in a folder, opened in the browser where there is a screen: python launch/open_tensorboard.py runs"""

import os
import sys
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path


def main(folder: str) -> None:
    """Serves until Ctrl-C. The URL is the first line that is printed."""
    if next(Path(folder).rglob("events.out.tfevents.*"), None) is None:
        sys.exit(f"{folder}: there are no runs with logger=tensorboard. Type make train.")
    from tensorboard import program  # 2 s

    server = program.TensorBoard()
    server.configure(argv=["tensorboard", "--logdir", folder])
    url = server.launch()  # at 6006, or the next port that is free
    print(f"{url} shows the runs in {folder}; Ctrl-C ends it", flush=True)
    if (
        sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    ):  # else it might be a text browser
        webbrowser.open(url)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
