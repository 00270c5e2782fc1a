"""GGUF files: blocks are gguf-py's to the bit, files are found by content, and none is ever half a file."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bench import identity, tryout
from bench.axes import AXES
from bench.axes.option import Session, Unavailable
from bench.axes.quantization import census, gguf_file, layers, with_gguf
from bench.commands.noise import NOISE
from bench.matrix import Row

TYPES = ("Q8_0", "Q5_1", "Q4_1", "Q4_0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where rows keep their files."""
    monkeypatch.setenv(with_gguf.CACHE_VARIABLE, str(tmp_path / "gguf"))
    return tmp_path / "gguf"


@pytest.fixture
def make_session(make_row: Callable[..., Row], folder: Path) -> Callable[..., Session]:
    def make(**changes: Any) -> Session:
        session = tryout.session_of(make_row(**changes))
        session.run = partial(session.run, latents=True)
        return session

    return make


def quantise(session: Session) -> dict[str, Any]:
    option = AXES["quantization"][session.row.quantization]
    option.apply(session)
    return option.verify(session)


@pytest.mark.parametrize("quant_type", TYPES)
def test_blocks_are_those_of_gguf_py_to_the_bit(quant_type: str) -> None:
    """Rounded to bf16 as weights are: then equal magnitudes of either sign stand in one block."""
    import torch

    from bench.axes.quantization import gguf_blocks

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 256, generator=generator) * torch.logspace(-6, 3, 256)[:, None]
    weight = weight.bfloat16()
    weight[0] = 0
    weight[1, ::2] = weight[1, 1::2].neg()
    weight[2] = 1.0
    weight[3] = torch.arange(256) / 2 - 64
    expected = gguf.quantize(weight.float().numpy(), gguf.GGMLQuantizationType[quant_type])
    assert np.array_equal(gguf_blocks.quantise(weight, quant_type).numpy(), expected)


def test_a_checksum_sees_one_bit_and_the_order() -> None:
    import torch

    from bench.axes.quantization.gguf_file import checksum

    weight = torch.randn(64, 64).bfloat16()
    flipped, swapped = weight.clone(), weight.clone()
    flipped.view(torch.int16)[3, 5] ^= 1
    swapped[0], swapped[1] = weight[1], weight[0]
    sums = {checksum(weight), checksum(flipped), checksum(swapped), checksum(weight.t())}
    assert len(sums) == 4
    assert checksum(weight.clone()) == checksum(weight)


def test_a_row_writes_its_file_once_and_the_next_row_of_these_weights_finds_it(
    make_session: Callable[..., Session], folder: Path
) -> None:
    first = quantise(make_session(quantization="gguf-q4_0"))
    assert first["written_by_this_row"]
    (file,) = folder.iterdir()
    assert (file.name, file.stat().st_size) == (first["file"], first["file_bytes"])
    written = file.stat().st_mtime_ns
    second = quantise(make_session(quantization="gguf-q4_0", task="img2img"))
    assert not second["written_by_this_row"]
    assert (second["file"], file.stat().st_mtime_ns) == (first["file"], written)


def test_other_weights_and_other_formats_get_files_of_their_own(
    make_session: Callable[..., Session], folder: Path
) -> None:
    import torch

    changed = make_session(quantization="gguf-q4_0")
    with torch.no_grad():
        changed.pipe.transformer.single_transformer_blocks[1].proj_out.weight[0, 0] += 1
    for session in (make_session(quantization="gguf-q4_0"), make_session(quantization="gguf-q4_1"), changed):
        assert quantise(session)["written_by_this_row"]
    assert len(list(folder.iterdir())) == 3


def test_a_file_that_was_never_finished_is_never_loaded(
    make_session: Callable[..., Session], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up half way through and the row runs again; then a killed row leaves its half behind."""
    from bench.axes.quantization import gguf_file

    whole, calls = gguf_file.quantise, []

    def full_disk(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 13:
            raise OSError(28, "No space left on device")
        return whole(*arguments)

    monkeypatch.setattr(gguf_file, "quantise", full_disk)
    with pytest.raises(OSError, match="No space left"):
        quantise(make_session(quantization="gguf-q8_0"))
    assert list(folder.iterdir()) == []

    monkeypatch.setattr(gguf_file, "quantise", whole)
    name = quantise(make_session(quantization="gguf-q8_0"))["file"]
    finished = (folder / name).read_bytes()
    (folder / name).rename(folder / f"{name}.4711.tmp")
    with (folder / f"{name}.4711.tmp").open("r+b") as half:
        half.truncate(len(finished) // 2)
    assert quantise(make_session(quantization="gguf-q8_0"))["written_by_this_row"]
    assert (folder / name).read_bytes() == finished


def test_a_damaged_file_is_named_and_not_used(make_session: Callable[..., Session], folder: Path) -> None:
    name = quantise(make_session(quantization="gguf-q8_0"))["file"]
    with (folder / name).open("r+b") as file:
        file.truncate(5_000)
    with pytest.raises(ValueError, match=rf"{name} is no readable GGUF file .*remove it"):
        quantise(make_session(quantization="gguf-q8_0"))


def test_the_command_writes_the_file_that_a_row_looks_for(
    make_session: Callable[..., Session], folder: Path
) -> None:
    run_command("q4_0", "--weights", "tiny", "--precision", "fp32")
    run_command("q8_0", "--weights", "tiny", "--precision", "fp32", "--component", "t5")
    assert not quantise(make_session(quantization="gguf-q4_0"))["written_by_this_row"]
    session = make_session(text_encoder="gguf-q8_0")
    AXES["text_encoder"]["gguf-q8_0"].apply(session)
    assert not AXES["text_encoder"]["gguf-q8_0"].verify(session)["written_by_this_row"]
    assert "already there" in run_command("q4_0", "--weights", "tiny", "--precision", "fp32")


def test_a_whole_file_of_ours_loads_as_a_users_file_and_draws_the_same(
    make_session: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through diffusers' own loader, which asks nothing of us but the file."""
    path = tmp_path / "tiny-q8_0.gguf"
    run_command("q8_0", "--weights", "tiny", "--precision", "fp32", "--whole", "--output", str(path))
    monkeypatch.setenv(with_gguf.FILE_VARIABLE, str(path))
    ours, users = make_session(quantization="gguf-q8_0"), make_session(quantization="gguf-file")
    quantise(ours)
    evidence = quantise(users)
    assert evidence["file"] == path.name
    assert evidence["tensors_by_type"]["Q8_0"] == 27
    assert np.array_equal(ours.run(steps=2).latents.numpy(), users.run(steps=2).latents.numpy())


def test_a_users_file_of_k_quants_loads_as_gguf_py_reads_it(
    make_session: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gguf-py cannot write K-quants, so their bytes are drawn: super-blocks of 256 with sane scales."""
    session = make_session(quantization="gguf-file")
    path = tmp_path / "k-quants.gguf"
    drawn = write_k_quants(session.pipe.transformer, path)
    monkeypatch.setenv(with_gguf.FILE_VARIABLE, str(path))
    evidence = quantise(session)
    assert evidence["tensors_by_type"]["Q4_K"] == len(drawn) == 27
    assert evidence["forms"]["diffusers.GGUFLinear(GGUFParameter, uint8, Q4_K)"] == 27

    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    linears = census.linears(session.pipe.transformer)
    for name, data in drawn.items():
        expected = gguf.dequantize(data, gguf.GGMLQuantizationType.Q4_K)
        read = dequantize_gguf_tensor(linears[name].weight).float().numpy()
        assert np.abs(read - expected).max() <= 2e-3 * np.abs(expected).max(), "diffusers computes in float16"
    assert np.isfinite(session.run(steps=1).latents.numpy()).all()


def write_k_quants(transformer: Any, path: Path) -> dict[str, Any]:
    """Every chosen linear in Q4_K, everything else as it is. Returns the drawn bytes by linear."""
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, arch="flux")
    drawn = {}
    for name, tensor in transformer.state_dict().items():
        linear = name.removesuffix(".weight")
        if not (name.endswith(".weight") and layers.in_flux_block(name) and tensor.dim() == 2):
            writer.add_tensor(name, tensor.float().numpy())
            continue
        # 144 bytes a super-block: scale and minimum in float16, 12 of 6-bit scales, 128 of values.
        blocks = random.integers(0, 256, (tensor.numel() // 256, 144), dtype=np.uint8)
        scales = random.uniform(1e-5, 1e-4, (len(blocks), 2)).astype(np.float16)
        blocks[:, :4] = scales.view(np.uint8)
        drawn[linear] = blocks.reshape(tensor.shape[0], -1)
        writer.add_tensor(name, drawn[linear], raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return drawn


def run_command(*arguments: str) -> str:
    from click.testing import CliRunner

    from bench.cli import main

    result = CliRunner().invoke(main, ["gguf", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_says_where_the_file_is_and_not_which_packages_look_for_which(tmp_path: Path) -> None:
    """In a process of its own: packages speak when they are first imported."""
    path = tmp_path / "tiny.gguf"
    command = [sys.executable, "-m", "bench", "gguf", "q8_0", "--weights=tiny", f"--output={path}"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{path} written" in ran.stdout
    assert [words for words in NOISE.values() if words in ran.stderr] == []


def test_another_warning_of_a_package_that_makes_noise_is_heard(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_command("q8_0", "--weights=tiny")
    for words in (NOISE["torchao"], "weights are damaged"):
        logging.getLogger("torchao").warning("%s!", words)
    heard = [record.getMessage() for record in caplog.records if record.name == "torchao"]
    assert heard == ["weights are damaged!"]


def test_the_command_refuses_a_whole_file_without_a_place_for_it() -> None:
    from click.testing import CliRunner

    from bench.cli import main

    result = CliRunner().invoke(main, ["gguf", "q8_0", "--weights", "tiny", "--whole"])
    assert result.exit_code == 2
    assert "--output" in result.output


@pytest.mark.parametrize("named", [None, "/nowhere/flux1-dev-Q4_K_S.gguf"])
def test_a_users_file_that_is_not_there_is_unavailable(
    make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:

    monkeypatch.delenv(with_gguf.FILE_VARIABLE, raising=False)
    if named:
        monkeypatch.setenv(with_gguf.FILE_VARIABLE, named)
    with pytest.raises(Unavailable, match=rf"row 1 .*gguf-file .*export {with_gguf.FILE_VARIABLE}="):
        AXES["quantization"]["gguf-file"].require(make_row(quantization="gguf-file"), "cpu")


@pytest.mark.parametrize("share", [0, 0.01, 0.7])
def test_a_users_file_that_is_no_gguf_or_half_of_one_is_unavailable(
    make_session: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """As an error page of a hub, or a download that broke off."""
    session, path = make_session(quantization="gguf-file"), tmp_path / "mine.gguf"
    write_k_quants(session.pipe.transformer, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))] or b"<html>not found</html>")
    monkeypatch.setenv(with_gguf.FILE_VARIABLE, str(path))
    with pytest.raises(Unavailable, match=rf"{path} is no .*GGUF.*export {with_gguf.FILE_VARIABLE}="):
        quantise(session)


def test_a_users_file_of_another_model_is_unavailable(
    make_session: Callable[..., Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t5.gguf"
    writer = gguf.GGUFWriter(path, arch="t5")
    writer.add_tensor("enc.blk.0.attn_q.weight", np.zeros((64, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setenv(with_gguf.FILE_VARIABLE, str(path))
    with pytest.raises(Unavailable, match=rf"{path} .*enc\.blk\.0\.attn_q.*FLUX"):
        quantise(make_session(quantization="gguf-file"))


def test_another_file_of_the_users_is_another_measurement(
    make_row: Callable[..., Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, row = tmp_path / "mine.gguf", make_row(quantization="gguf-file")

    def fingerprint(of: Row = row) -> str:
        return identity.fingerprint_of(of, identity.ingredients(of, "tiny"))

    monkeypatch.setenv(with_gguf.FILE_VARIABLE, str(path))
    path.write_bytes(b"Q8_0 weights")
    first = fingerprint()
    path.write_bytes(b"Q4_0 weights!")
    second = fingerprint()
    (moved := tmp_path / "moved.gguf").write_bytes(path.read_bytes())
    monkeypatch.setenv(with_gguf.FILE_VARIABLE, str(moved))
    assert first != second == fingerprint()
    plain = make_row()
    with_file = fingerprint(plain)
    monkeypatch.delenv(with_gguf.FILE_VARIABLE)
    assert fingerprint(plain) == with_file, "who does not run it does not ask for it"


def test_two_writers_of_one_file_do_not_share_an_unfinished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In containers their process ids may be equal, and the folder is the same."""
    import torch

    wanted = gguf_file.Contents({"a.weight": torch.randn(64, 64)}, frozenset({"a.weight"}), "Q8_0")
    target, own = tmp_path / "shared.gguf", gguf_file._write

    def die_half_way(_wanted: Any, path: Path, _progress: Any) -> None:
        path.write_bytes(b"half of it")
        raise OSError("killed")

    def with_another_beside(contents: Any, path: Path, progress: Any) -> None:
        own(contents, path, progress)
        monkeypatch.setattr(gguf_file, "_write", die_half_way)
        with pytest.raises(OSError, match="killed"):
            gguf_file.write(wanted, target, progress)

    monkeypatch.setattr(gguf_file, "_write", with_another_beside)
    gguf_file.write(wanted, target, lambda *_: None)
    assert gguf_file.read(target, ["a.weight"], "cpu").keys() == {"a.weight"}
    assert [path.name for path in tmp_path.iterdir()] == ["shared.gguf"]


def test_a_file_of_another_quantiser_is_not_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    wanted = gguf_file.Contents({"a.weight": torch.zeros(64, 64)}, frozenset({"a.weight"}), "Q8_0")
    before = wanted.key
    monkeypatch.setattr(gguf_file, "_quantiser_sha256", lambda: "mended")
    assert wanted.key != before
