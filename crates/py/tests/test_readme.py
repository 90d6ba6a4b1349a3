"""The examples of README.md run as they stand."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"
PIPELINE, CACHE = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_cache_as_the_readme_uses_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(CACHE, "README.md", "exec"), {})
    assert "'returned_bytes': 0" in capsys.readouterr().out and not any(tmp_path.iterdir())


def test_the_pipeline_as_the_readme_uses_it(monkeypatch, capsys):
    for module, least in (("torch", None), ("diffusers", "0.42"), ("transformers", None)):
        pytest.importorskip(module, minversion=least, reason=f"{module} is not installed, or too old")
    monkeypatch.chdir(README.parents[2])
    exec(compile(PIPELINE, "README.md", "exec"), {})
    assert "'calls': 2" in capsys.readouterr().out
