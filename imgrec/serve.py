"""Answers over HTTP: python -m imgrec.serve ckpt=runs/NAME/ID port=8000"""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from imgrec.config.annotations import format_value
from imgrec.config.answers import AnswerSettings, check_answers
from imgrec.config.compose import compose_config
from imgrec.config.schema import ServedFormat, dotted_types, parse_settings
from imgrec.config.start_checks import check_gpu, check_packages
from imgrec.distributed.command import run_command
from imgrec.errors import CheckpointError, ConfigError, DataError, first_names, plural
from imgrec.export.sealed_file import is_sealed
from imgrec.paths import EXPORTED, find_checkpoint, find_file
from imgrec.serving.access import VARIABLE, read_token, readable_by_others
from imgrec.serving.address import bind, url_of
from imgrec.terminal import Terminal

if TYPE_CHECKING:
    from socket import socket

    from imgrec.serving.app import Service
    from imgrec.serving.recognizer import Recognizer

NAME_NETWORK = "Name a checkpoint (.ckpt), an .onnx file of imgrec export, or a run directory such as runs/NAME/ID."
NEEDED = ("starlette", "uvicorn", "python_multipart", "prometheus_client")


@dataclass(frozen=True, kw_only=True)
class ServeConfig(AnswerSettings):
    """The further keys of conf/serve.yaml."""

    host: str
    port: int
    token_file: str | None
    max_wait_ms: float
    network_threads: int | Literal["auto"]
    max_queue: int
    max_images: int
    max_body_mb: float
    max_pixels: int
    formats: list[ServedFormat]
    body_timeout_s: float
    stop_timeout_s: float


def main(argv: Sequence[str], config_dir: str | None = None) -> int:
    """Serve until a signal; returns 0 when all accepted requests are answered."""
    config = parse_settings(ServeConfig, compose_config("serve", argv, config_dir, types=dotted_types(ServeConfig)))
    check_answers(coverage=config.coverage, risk=config.risk, calibrated=config.calibrated, tta=config.tta)
    if config.ckpt is None:
        raise ConfigError(
            "ckpt=null: serve needs a network. Set ckpt=runs/NAME/ID, a .ckpt file, or an .onnx file of imgrec export."
        )
    check_packages("serve", "serve", *NEEDED)
    if config.max_images > config.max_queue:
        raise ConfigError(
            f"max_images={config.max_images}: more than max_queue={config.max_queue} are never accepted. "
            f"Set max_queue={config.max_images}."
        )
    if not config.formats:
        raise ConfigError("formats=[]: no image could be sent. Set formats=[jpeg,png].")
    if _is_onnx(config):
        check_packages(f"ckpt={config.ckpt}", "export", "onnxruntime")
        _check_onnx_keys(config)
    token = read_token(config.token_file)
    file = find_file(config.ckpt, NAME_NETWORK)
    if _is_onnx(config):
        if not is_sealed(file):
            raise DataError(
                f"{file} cannot be served: it is damaged, or was not written by imgrec. Export it again, or name another."
            )
    elif file.suffix in EXPORTED.values():
        raise CheckpointError(f"{file}: of exported files serve takes .onnx, which imgrec export RUN writes. {NAME_NETWORK}")
    else:
        find_checkpoint(config.ckpt, allowed=NAME_NETWORK)
    check_gpu("device", config.device)
    return _serve(config, token)


def _serve(config: ServeConfig, token: str | None) -> int:
    terminal = Terminal()
    is_shared = config.token_file is not None and readable_by_others(config.token_file)  # now, as it may be removed meanwhile
    with closing(bind(config.host, config.port)) as opened:
        from imgrec.serving.server import run_server

        service = _build_service(config, token, is_local=_is_loopback(opened.getsockname()[0]))
        run_server(
            service,
            opened,
            stop_timeout_s=config.stop_timeout_s,
            on_started=lambda: _say_started(terminal, service, opened, url_of(opened), config.token_file if is_shared else None),
        )
    terminal.say(f"stopped; {plural(service.answered, 'image')} answered")
    return 0


def _say_started(terminal: Terminal, service: "Service", opened: "socket", url: str, shared_file: str | None) -> None:
    recognizer, token = service.recognizer, service.settings.token
    header = "-H 'Authorization: Bearer TOKEN' " if token else ""
    terminal.say(f"{recognizer.file}: {plural(len(recognizer.classes), 'class', 'es')} ({first_names(recognizer.classes, 5)})")
    host = opened.getsockname()[0]
    if token is None and not _is_loopback(host):
        terminal.say(f"host={host}: whoever reaches this machine may ask. Set {VARIABLE} or token_file=FILE.", style="yellow")
    if shared_file is not None:
        terminal.say(
            f"token_file={shared_file}: all users of this machine can read it. Type chmod 600 {shlex.quote(shared_file)}",
            style="yellow",
        )
    terminal.say(f"listening at {url}, a page to drop images on; Ctrl-C stops", style="bold green")
    terminal.say("next:")
    terminal.say(f"  curl {header}-F image=@photo.jpg {url}/predict")


def _is_loopback(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_loopback


def _build_service(config: ServeConfig, token: str | None, *, is_local: bool) -> "Service":
    import torch

    from imgrec.serving.app import ServerSettings, Service
    from imgrec.serving.limits import Limits

    recognizer = _load_recognizer(config)
    threads = _network_threads(config, recognizer.device)
    settings = ServerSettings(
        limits=Limits(
            max_images=config.max_images,
            max_body_bytes=round(config.max_body_mb * 1e6),
            max_pixels=config.max_pixels,
            formats=tuple(config.formats),
            body_timeout_s=config.body_timeout_s,
        ),
        top_k=config.top_k,
        batch_size=config.batch_size,
        max_wait_s=config.max_wait_ms / 1000,
        max_queue=config.max_queue,
        network_threads=threads,
        token=token,
        local_host=config.host if is_local else None,
    )
    cores = max(1, torch.get_num_threads() // threads)  # of each batch
    return Service(recognizer, settings, load=lambda: _load_recognizer(config), start_thread=lambda: torch.set_num_threads(cores))


def _network_threads(config: ServeConfig, device: str) -> int:
    if config.network_threads != "auto":
        return config.network_threads
    return len(os.sched_getaffinity(0)) if device == "cpu" else 1


def _load_recognizer(config: ServeConfig) -> "Recognizer":
    from imgrec.inference.answer_settings import build_predictor
    from imgrec.inference.checkpoint import load_checkpoint
    from imgrec.inference.tta import mirror_note
    from imgrec.serving.onnx_recognizer import OnnxRecognizer
    from imgrec.serving.recognizer import CheckpointRecognizer

    assert config.ckpt is not None
    if _is_onnx(config):
        cores = max(1, len(os.sched_getaffinity(0)) // _network_threads(config, "cpu"))
        return OnnxRecognizer(Path(config.ckpt), cores=cores, max_pixels=config.max_pixels)
    checkpoint = load_checkpoint(Path(config.ckpt))
    predictor, guarantee = build_predictor(checkpoint, config)
    if note := mirror_note(checkpoint, config.tta):
        Terminal().say(note, style="yellow")
    return CheckpointRecognizer(predictor, guarantee, batch_size=config.batch_size, max_pixels=config.max_pixels)


def _is_onnx(config: ServeConfig) -> bool:
    return config.ckpt is not None and config.ckpt.endswith(".onnx")


def _check_onnx_keys(config: ServeConfig) -> None:
    """ConfigError for what an ONNX file decided when it was exported."""
    fixed: dict[str, tuple[object, ...]] = {
        "coverage": (None,),
        "risk": (None,),
        "tta": (None,),
        "precision": (None, "32"),
        "calibrated": (True,),
        "device": ("auto", "cpu"),
    }
    for key, possible in fixed.items():
        if (value := getattr(config, key)) not in possible:
            given = format_value(value)
            raise ConfigError(f"{key}={given}: an ONNX file answers as it was exported, on the CPU. Leave {key} out.")


if __name__ == "__main__":
    sys.exit(run_command("serve", main, sys.argv[1:]))
