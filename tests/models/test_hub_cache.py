"""HF_HOME, HF_HUB_OFFLINE and HF_TOKEN, as everywhere in the ecosystem: in processes of their own, since the variables
count when huggingface_hub is imported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REVISION = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).resolve().parents[2]
LOAD = """
import json, sys
from tvaccine_core.config import ModelConfig
from tvaccine_core.errors import TVaccineError
from tvaccine_core.models.files import check_model
from tvaccine_core.models.load import load_model
said = {}
for model in sys.argv[1:]:
    config = ModelConfig(name=model, device="cpu")
    for name, look in (("check", check_model), ("load", load_model)):
        try:
            found = look(config)
            said[f"{name} {model}"] = found.num_layers if name == "check" else type(found.model).__name__
        except TVaccineError as error:
            said[f"{name} {model}"] = [type(error).__name__, str(error), error.remedy]
print(json.dumps(said))
"""
TOKEN = """
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
import os, threading
asked = []
class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        if "owner/gated" in self.path:
            asked.append(self.headers.get("authorization"))
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()
    do_HEAD = do_GET
    def log_message(self, *_): pass
hub = HTTPServer(("127.0.0.1", 0), Hub)
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{hub.server_port}"
threading.Thread(target=hub.serve_forever, daemon=True).start()
from tvaccine_core.config import ModelConfig
from tvaccine_core.errors import ModelError
from tvaccine_core.models.load import load_model
try:
    load_model(ModelConfig(name="owner/gated", device="cpu"))
except ModelError as error:
    print(json.dumps([asked[0], str(error), error.remedy]))
"""


@pytest.fixture
def home(tiny_folder: Path, tmp_path: Path) -> Path:
    """HF_HOME with one model in its cache, laid out as huggingface_hub lays it out: blobs, links to them, a ref."""
    repository = tmp_path / "hf" / "hub" / "models--owner--tiny"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    for number, path in enumerate(sorted(tiny_folder.iterdir())):
        blob = repository / "blobs" / f"{number:040x}"
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return tmp_path / "hf"


def run(code: str, *arguments: str, **variables: str) -> str:
    names = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_ENDPOINT")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_offline_the_cache_under_hf_home_is_all_there_is(home: Path) -> None:
    said = json.loads(run(LOAD, "owner/tiny", "owner/other", HF_HOME=str(home), HF_HUB_OFFLINE="1"))
    assert said["check owner/tiny"] == 3
    assert said["load owner/tiny"] == "LlamaForCausalLM"
    for look in ("check", "load"):
        kind, message, remedy = said[f"{look} owner/other"]
        assert kind == "ModelError"
        assert "owner/other is not in the local cache" in message
        assert "Go online once" in remedy
        assert "HF_HOME" in remedy
        assert str(home) not in message + remedy


def test_the_token_of_the_environment_is_sent_and_a_gated_model_says_what_to_do(tmp_path: Path) -> None:
    said = run(TOKEN, HF_HOME=str(tmp_path), HF_TOKEN="hf_secret")
    sent, message, remedy = json.loads(said)
    assert sent == "Bearer hf_secret"
    assert "owner/gated is gated" in message
    assert "hf auth login" in remedy
    assert "hf_secret" not in message + remedy
