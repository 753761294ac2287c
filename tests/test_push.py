"""Pushing with the real huggingface_hub against a small Hub on this machine, over LFS. (The Xet path is not tried here.)"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hub_server import SIGNATURE, Fault, HubServer, Repository

CARD = "---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# A model\n"
WEIGHTS = os.urandom(3_000_000)

# huggingface_hub reads HF_ENDPOINT when it is imported: one process of its own for all tests of this file.
CLIENT = """
import json, os, sys
from pathlib import Path
from llm_grpo import command
from llm_grpo.errors import UserError
from llm_grpo.export import push
command.quiet_libraries()
for line in sys.stdin:
    wish = json.loads(line)
    os.environ["HF_TOKEN"] = wish.pop("token")
    said, result, error = [], None, None
    try:
        if wish.pop("call") == "upload":
            result = push.upload(Path(wish["folder"]), wish["repo"], wish["private"], "AGAIN", said.append, wish["waits_s"])
        else:
            push.check_rights(wish["repo"], wish["private"], said.append)
    except UserError as fault:
        error = str(fault)
    print("RESULT", json.dumps({"said": said, "result": result, "error": error}), flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as hub:
        yield hub


def environment(hub: HubServer, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if "OFFLINE" not in name and name != "HF_TOKEN"}
    ours = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**clean, **ours, "PYTHONPATH": str(ROOT / "src"), **more}


@pytest.fixture(scope="module")
def client(server: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """client("upload" | "check", ...) -> {"said": [...], "result": ..., "error": ...}."""
    home = tmp_path_factory.mktemp("hf")
    log = home / "stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment(server, HF_HOME=str(home)),
        )
        printed = []

        def ask(call: str, **wish: Any) -> dict[str, Any]:
            wish = {"repo": "user/repo", "private": False, "waits_s": [0.05, 0.05], "token": server.token, **wish}
            process.stdin.write(json.dumps({"call": call, **wish}) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                printed.append(line)
                if line.startswith("RESULT "):
                    return json.loads(line.removeprefix("RESULT "))
            raise AssertionError(log.read_text())

        yield ask
        process.stdin.close()
        assert process.wait(30) == 0
    said = "".join(printed) + log.read_text()
    assert "/lfs/" in said, "addresses of the storage were spoken of"
    assert server.token not in said and SIGNATURE not in said, "but no secret is in any output of the whole session"


@pytest.fixture
def hub(server: HubServer) -> HubServer:
    server.forget()
    return server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a merged folder looks like; the last two files are not for others."""
    files = {"README.md": CARD.encode(), "config.json": b"{}", "proof.json": b'{"passed": true}'}
    files |= {"model.safetensors": WEIGHTS, ".proof.json.123": b"half", "validation.json": b"{}"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def arrived(hub: HubServer, folder: Path, repo: str = "user/repo") -> bool:
    wanted = ("README.md", "config.json", "proof.json", "model.safetensors")
    return hub.files(repo) == {name: (folder / name).read_bytes() for name in wanted}


def test_a_push_arrives_whole(hub: HubServer, client: Any, folder: Path) -> None:
    done = client("upload", folder=str(folder))
    assert done["result"] == f"{hub.url}/user/repo" and not done["said"], done
    assert arrived(hub, folder) and hub.repositories["user/repo"].commits == 1
    assert hub.sent("PUT", "/lfs/") == [len(WEIGHTS)] and not hub.repositories["user/repo"].private
    assert hub.sent("POST", "validate-yaml"), "the Hub looked at the card's metadata before anything was sent"
    assert len(list(folder.iterdir())) == 6, "the local copy stays"


def test_a_second_push_sends_only_what_changed(hub: HubServer, client: Any, folder: Path) -> None:
    client("upload", folder=str(folder))
    again = client("upload", folder=str(folder))
    assert again["error"] is None
    assert len(hub.sent("PUT", "/lfs/")) == 1 and hub.repositories["user/repo"].commits == 1, "nothing was sent again"
    (folder / "README.md").write_text(CARD + "More.\n")
    client("upload", folder=str(folder))
    assert len(hub.sent("PUT", "/lfs/")) == 1 and hub.repositories["user/repo"].commits == 2 and arrived(hub, folder)


def test_a_connection_cut_in_the_middle_of_the_weights(hub: HubServer, client: Any, folder: Path) -> None:
    hub.faults = [Fault("PUT", "/lfs/", "cut")]
    assert client("upload", folder=str(folder))["error"] is None
    assert hub.sent("PUT", "/lfs/") == [len(WEIGHTS) // 2, len(WEIGHTS)] and arrived(hub, folder)


def test_of_a_large_file_only_the_part_that_was_cut_is_sent_again(hub: HubServer, client: Any, folder: Path) -> None:
    hub.forget(part_bytes=1_000_000)
    hub.faults = [Fault("PUT", "/2", "cut")]
    assert client("upload", folder=str(folder))["error"] is None
    assert sorted(hub.sent("PUT", "/lfs/")) == [500_000, 1_000_000, 1_000_000, 1_000_000] and arrived(hub, folder)


PASSING = [
    (Fault("POST", "/objects/batch", 429, headers={"Retry-After": "0"}), False, "huggingface_hub waits as it is told"),
    (Fault("POST", "/preupload/", 503), False, "huggingface_hub tries again"),
    (Fault("POST", "/commit/", 429), True, "what it gives up on, we try again: a rate limit"),
    (Fault("POST", "/commit/", 502, times=2), True, "a fault of the server, twice"),
    (Fault("POST", "/commit/", "cut"), True, "the connection cut within the commit"),
    (Fault("POST", "/repos/create", 500), True, "and before it"),
]


@pytest.mark.parametrize(("fault", "said", "why"), PASSING)
def test_faults_that_pass(hub: HubServer, client: Any, folder: Path, fault: Fault, said: bool, why: str) -> None:
    hub.faults = [Fault(**vars(fault))]
    done = client("upload", folder=str(folder))
    assert done["error"] is None and arrived(hub, folder) and hub.repositories["user/repo"].commits == 1
    assert bool(done["said"]) == said and all("Trying again in 0.05 s" in line for line in done["said"])
    assert len(hub.sent("PUT", "/lfs/")) == 1, "the weights, once there, are not sent again"


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: HubServer, client: Any, folder: Path) -> None:
    hub.faults = [Fault("POST", "/commit/", "lost")]
    done = client("upload", folder=str(folder))
    assert done["error"] is None and len(done["said"]) == 1
    assert arrived(hub, folder) and hub.repositories["user/repo"].commits == 1


def test_a_push_that_fails_is_gone_on_with(hub: HubServer, client: Any, folder: Path) -> None:
    hub.faults = [Fault("POST", "/commit/", 500, times=3)]
    done = client("upload", folder=str(folder))
    assert "500" in done["error"] and "AGAIN" in done["error"] and str(folder) in done["error"]
    assert len(done["said"]) == 2 and not hub.files("user/repo")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert client("upload", folder=str(folder))["error"] is None
    assert len(hub.sent("PUT", "/lfs/")) == 1 and arrived(hub, folder), "what had arrived was not sent again"


REFUSED = [
    (Fault("PUT", "/lfs/", 403), "model.safetensors", "the weights may not be stored"),
    (Fault("POST", "/commit/", 403), "403", "the commit is forbidden"),
    (Fault("POST", "/repos/create", 403), "403", "no repository may be made"),
]


@pytest.mark.parametrize(("fault", "named", "why"), REFUSED)
def test_what_is_forbidden_is_not_tried_again(
    hub: HubServer, client: Any, folder: Path, fault: Fault, named: str, why: str
) -> None:
    hub.faults = [Fault(**vars(fault))]
    done = client("upload", folder=str(folder))
    assert named in done["error"] and "403" in done["error"] and not done["said"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS and not hub.repositories.get(
        "user/repo", Repository()
    ).files


def test_a_card_the_hub_does_not_take_is_said_before_anything_is_sent(
    hub: HubServer, client: Any, folder: Path
) -> None:
    (folder / "README.md").write_text(CARD.replace("license: mit", "license: [mit"))
    assert "Invalid metadata" in client("upload", folder=str(folder))["error"]
    (folder / "README.md").write_text(CARD.replace("license: mit", "license: 3"))
    done = client("upload", folder=str(folder))
    assert "Invalid metadata" in done["error"] and "license" in done["error"]
    assert not hub.sent("PUT", "/lfs/")


def test_repositories_that_are_there(hub: HubServer, client: Any, folder: Path) -> None:
    hub.repositories["user/repo"] = Repository(private=True, files={"old.txt": b"kept"})
    assert client("check")["error"] is None and client("check", private=True)["error"] is None
    assert client("upload", folder=str(folder))["error"] is None
    assert hub.files("user/repo")["old.txt"] == b"kept" and hub.repositories["user/repo"].private
    assert client("upload", folder=str(folder), repo="team/new", private=True)["error"] is None
    assert hub.repositories["team/new"].private


def role(name: str, **fine: Any) -> dict[str, Any]:
    return {"displayName": "mine", "role": name, **({"fineGrained": fine} if fine else {})}


WRITES = {"scoped": [{"entity": {"type": "user", "name": "user"}, "permissions": ["repo.content.read", "repo.write"]}]}
RIGHTS = [
    ({}, {}, None, "a token that may write, a repository that is not there"),
    ({"repo": "team/repo"}, {}, None, "in an organisation"),
    ({"token": ""}, {}, "set HF_TOKEN", "no token"),
    ({"token": "hf_two words"}, {}, "holds spaces", "no token looks like that"),
    ({"token": "hf_\x01\u00e9"}, {}, "holds spaces or signs", "nor like that"),
    ({"token": "hf_other"}, {}, "401", "a token the Hub does not know"),
    ({}, role("read"), "'mine' of user. may only read", "a token to read with"),
    (
        {},
        role("fineGrained", scoped=[{"permissions": ["repo.content.read"]}]),
        "may only read",
        "fine-grained, no writing",
    ),
    ({}, role("fineGrained", **WRITES), None, "fine-grained, with writing"),
    ({"repo": "hidden/repo"}, role("fineGrained", **WRITES), None, "its organisations are not listed; the Hub decides"),
    ({"repo": "stranger/repo"}, {}, "'stranger' is no place.*under: user, team", "somebody else's name"),
    ({"repo": "readers/repo"}, {}, "'readers' is no place", "an organisation of which one is a reader"),
    ({"repo": "user/locked"}, {}, "may not write to it", "it is there, and locked"),
    ({"repo": "user/public", "private": True}, {}, "is there and is public", "private cannot be had"),
    ({"repo": "user/public"}, {}, None, "it is there"),
    ({"repo": "repo"}, {}, "USER/NAME", "no user in the name"),
    ({"repo": "a/b/c"}, {}, "--push a/b/c", "too many parts"),
    ({"repo": "user/.."}, {}, "--push user/..", "no name at all"),
]


@pytest.mark.parametrize(("wish", "token", "said", "why"), RIGHTS)
def test_rights_are_checked_without_a_trace(
    hub: HubServer, client: Any, wish: dict[str, Any], token: dict[str, Any], said: str | None, why: str
) -> None:
    hub.repositories = {"user/locked": Repository(writable=False), "user/public": Repository()}
    if token:
        hub.who["auth"]["accessToken"] = token
    done = client("check", **wish)
    assert (done["error"] is None) == (said is None) and re.search(said or "", done["error"] or ""), done
    assert len(hub.repositories) == 2 and {method for method, _, _ in hub.requests} <= {"GET"}, "nothing is made"


def test_a_check_outlives_a_moment_of_trouble(hub: HubServer, client: Any) -> None:
    hub.faults = [Fault("GET", "/whoami-v2", 503)]
    done = client("check")
    assert done["error"] is None and len(done["said"]) == 1 and "503" in done["said"][0]


# --- the script ------------------------------------------------------------------------------------------------


def script(hub: HubServer, home: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "src/merge.py"), *map(str, words)]
    variables = environment(hub, HF_TOKEN=hub.token, HF_HOME=str(home), **more)
    return subprocess.run(command, env=variables, capture_output=True, text=True, cwd=ROOT, timeout=300)


@pytest.fixture(scope="module")
def run(demo_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(demo_run[0], tmp_path_factory.mktemp("runs") / "demo"))


def test_from_a_run_to_the_hub(hub: HubServer, run: Path, tmp_path: Path) -> None:
    """Merged by the training already: proved, described and pushed; the second time nothing of it is done again."""
    done = script(hub, tmp_path, "--run", run, "--push", "user/demo", "--proof-limit", 8)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is taken as it is" in done.stdout and "Proof passed on 8" in done.stdout
    assert f"Pushed: {hub.url}/user/demo" in done.stdout and hub.token not in done.stdout + done.stderr
    files = hub.files("user/demo")
    assert files.keys() == {path.name for path in (run / "merged").iterdir()}
    assert files["model.safetensors"] == (run / "merged/model.safetensors").read_bytes()
    assert b"Is the merged model the adapter?\n\nYes" in files["README.md"] and str(run).encode() not in b"".join(
        files.values()
    )
    again = script(hub, tmp_path, "--run", run, "--push", "user/demo", "--proof-limit", 8)
    assert again.returncode == 0 and "what was trained answers" not in again.stdout, (
        "the proof of these weights is reused"
    )
    assert hub.repositories["user/demo"].commits == 1 and len(hub.sent("PUT", "/lfs/")) == 1


def test_a_failed_proof_is_not_pushed(hub: HubServer, run: Path, tmp_path: Path) -> None:
    """Under thresholds that nothing can meet; then with --skip-proof, which the card says."""
    words = ("--run", run, "--push", "user/bad", "--proof-limit", 8)
    done = script(hub, tmp_path, *words, "merge.thresholds.mean_logprob_gap=1e-12")
    assert done.returncode == 1 and "merge.thresholds.mean_logprob_gap allows 1e-12" in done.stdout, done.stderr
    assert "not pushed" in done.stdout and "user/bad" not in hub.repositories, "not even made"
    assert (run / "merged/model.safetensors").is_file() and not json.loads((run / "merged/proof.json").read_text())[
        "passed"
    ]
    done = script(hub, tmp_path, *words, "--skip-proof")
    card = hub.files("user/bad")["README.md"].decode()
    assert done.returncode == 0 and "Failed: mean_logprob_gap" in card and "with `--skip-proof`" in card
    (run / "merged/proof.json").unlink()
    assert script(hub, tmp_path, *words, "--skip-proof").returncode == 0
    assert (
        "were not compared with the adapter's. The comparison was skipped"
        in hub.files("user/bad")["README.md"].decode()
    )


def test_the_adapter_alone(hub: HubServer, run: Path, tmp_path: Path) -> None:
    def adapter_on(base: str) -> Path:
        adapter = shutil.copytree(run / "adapter", tmp_path / "adapter", dirs_exist_ok=True)
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        return adapter

    words = ["--run", run, "--push", "--method", "lora", "merge.push_to=user/lora"]
    done = script(hub, tmp_path, *words, "--adapter", adapter_on("user/base"))
    assert done.returncode == 0, done.stderr
    files = hub.files("user/lora")
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    } <= files.keys() and "proof.json" not in files
    assert b"library_name: peft" in files["README.md"] and "validation.json" not in files
    done = script(hub, tmp_path, "--run", run, "--push")
    assert done.returncode == 2 and "merge.push_to" in done.stderr
    for base in ("/home/me/base", "examples/tiny_qwen2"):  # others could not load it
        words = ["--run", run, "--adapter", adapter_on(base), "--push", "user/secret", "--method", "lora"]
        done = script(hub, tmp_path, *words)
        assert done.returncode == 2 and f"names its base as {base}" in done.stderr
    assert "user/secret" not in hub.repositories


def test_gguf_says_where_it_can_be_had(hub: HubServer, run: Path, tmp_path: Path) -> None:
    done = script(hub, tmp_path, "--run", run, "--method", "gguf", HOME=str(tmp_path), UNSLOTH_LLAMA_CPP_PATH="")
    assert done.returncode == 2 and f"convert_hf_to_gguf.py {run}/merged --outfile" in done.stderr
