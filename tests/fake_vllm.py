"""A program that takes the options of `vllm serve`, or with --model-path those of SGLang's server, refuses others, and serves as they do:
for tests that start a server.

What it does besides stands in the environment variable FAKE_VLLM, as JSON: `folder`, where each start leaves a line in `starts.jsonl`, and
`starts`, what happens at the first start, the second and so on; the last holds for all further ones.

    slow      seconds of loading            dies     what is said before it ends with status 1, without ever being ready
    answers   so many, then it is killed    chatter  bytes that it says while it loads
    deaf      to signals that can be heard  silent   it loads for ever
    taken     another process is at its port
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fake_server import Body, FakeServer
from tokenizers import Tokenizer


class Light:
    """A tokenizer of `tiny.py` from its folder, without the library that takes seconds to import."""

    def __init__(self, folder: Path) -> None:
        self._core = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.eos_token_id = self._core.token_to_id("<|end|>")

    def apply_chat_template(self, messages: list[Body], **how: Any) -> list[int]:
        text = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)
        whole = text.removesuffix("<|end|>") if how.get("continue_final_message") else text + "<|assistant|>"
        return list(self._core.encode(whole).ids)

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": list(self._core.encode(text).ids)}

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return str(self._core.decode(ids, skip_special_tokens=skip_special_tokens))


def searching(messages: list[Body], draw: random.Random) -> str:
    """Opens any place, and says of a failure that it should have been another."""
    place = f"open place{draw.randint(1, 3)}"
    return f"turn 1: {place}" if messages[-1]["content"].endswith("Reflect.") else place


def options_of_sglang() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch_server", allow_abbrev=False)
    parser.add_argument("--model-path", dest="model", required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=["auto", "half", "float16", "bfloat16", "float", "float32"])
    parser.add_argument("--context-length", dest="max_model_len", type=int, default=2048)
    parser.add_argument("--tp-size", type=int)
    parser.add_argument("--mem-fraction-static", type=float)
    parser.add_argument("--sampling-defaults", choices=["openai", "model"])
    parser.add_argument("--log-level-http")
    parser.add_argument("--config", type=Path)
    found = parser.parse_args(sys.argv[2:] if sys.argv[1:2] == ["serve"] else None)
    assert found.config.stat().st_mode & 0o077 == 0
    os.environ["VLLM_API_KEY"] = found.config.read_text().removeprefix("api-key: ").strip()
    found.model_tag = None
    return found


def options() -> argparse.Namespace:
    if "--model-path" in sys.argv:
        return options_of_sglang()
    parser = argparse.ArgumentParser(prog="vllm serve", allow_abbrev=False)
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--tensor-parallel-size", type=int)
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--enable-prefix-caching", action="store_true")
    parser.add_argument("--logprobs-mode", choices=["raw_logprobs", "processed_logprobs"])
    parser.add_argument("--generation-config")
    parser.add_argument("--disable-uvicorn-access-log", action="store_true")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512])
    given = sys.argv[1:]
    return parser.parse_args(given[1:] if given[:1] == ["serve"] else given)


class Versioned(FakeServer):
    """Tells its version, and is killed after so many answers."""

    left = sys.maxsize
    adapters: ClassVar[list[str]] = []

    def take(self, body: bytes) -> tuple[int, Any]:
        """An adapter, as vLLM does where it was told to by an option and by a variable."""
        asked = json.loads(body)
        if "--enable-lora" not in sys.argv or os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "True":
            return 404, {"detail": "Not Found"}
        if asked["lora_name"] in self.adapters or not (Path(asked["lora_path"]) / "adapter_config.json").is_file():
            return 400, {"error": {"message": "it is loaded already, or no adapter", "code": 400}}
        self.adapters.append(asked["lora_name"])
        return 200, f"Success: LoRA adapter '{asked['lora_name']}' added successfully."

    def models(self) -> tuple[int, Any]:
        """With the adapters."""
        status, listed = super().models()
        own = listed["data"][0]
        return status, listed | {"data": [own, *({**own, "id": name, "parent": own["id"]} for name in self.adapters)]}

    def answer(self, method: str, path: str, body: bytes, authorization: str = "") -> tuple[int, Any]:
        if path == "/version":
            return 200, {"version": "0.30.0"}
        if path == "/get_server_info" and "--model-path" in sys.argv:
            return 200, {"version": "0.5.3", "tp_size": 1}
        if path == "/v1/load_lora_adapter":
            return self.take(body)
        if method == "POST" and (name := json.loads(body).get("model")) in self.adapters:
            body = body.replace(json.dumps(name).encode(), json.dumps(self.model).encode(), 1)
        if method == "POST":
            type(self).left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(method, path, body, authorization)


def told(folder: Path, found: argparse.Namespace) -> int:
    """Leaves a line about this start and returns its number. The process group gets a further member, as vLLM's has."""
    other = subprocess.Popen(["sleep", "600"])
    path = folder / "starts.jsonl"
    number = len(path.read_text().splitlines()) if path.exists() else 0
    line = {"pids": [os.getpid(), other.pid], "line": sys.argv, "model": found.model_tag or found.model, "port": found.port}
    with path.open("a") as file:
        file.write(json.dumps({**line, "key": os.environ["VLLM_API_KEY"], "keeper": os.getppid()}) + "\n")
    return number


def main() -> None:
    found = options()
    plan = json.loads(os.environ["FAKE_VLLM"])
    number, starts = told(Path(plan["folder"]), found), plan.get("starts") or [{}]
    how = starts[min(number, len(starts) - 1)]
    print(f"(APIServer pid={os.getpid()}) INFO 11-26 14:50:01 [launcher.py:30] key {os.environ['VLLM_API_KEY']}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if how.get("deaf"):
        for one in (signal.SIGINT, signal.SIGTERM):
            signal.signal(one, signal.SIG_IGN)
    for _ in range(how.get("chatter", 0) // 100):
        print("x" * 99)
    if how.get("silent"):
        time.sleep(600)
    time.sleep(how.get("slow", 0))
    if "dies" in how:
        print(how["dies"], flush=True)
        raise SystemExit(1)
    if how.get("taken"):
        stranger = socket.create_server(("127.0.0.1", found.port))
        print(f"another listens at {stranger.getsockname()}", flush=True)
    Versioned.left = how.get("answers", sys.maxsize)
    folder = Path(found.model_tag or found.model)
    server = Versioned(
        model=found.served_model_name,
        context=found.max_model_len,
        key=os.environ["VLLM_API_KEY"],
        play=searching,
        tokenizer=Light(folder),
    )
    try:
        with server.listening(found.port):
            print(f"(APIServer pid={os.getpid()}) INFO 11-26 14:50:02 [launcher.py:46] ready", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        (Path(plan["folder"]) / "bye").touch()
        print("(APIServer) INFO 11-26 14:50:03 [launcher.py:99] bye", flush=True)


if __name__ == "__main__":
    main()
