"""CIFAR-10: torchvision's files, the image folder, the download and what happens without a network."""

import hashlib
import http.server
import io
import pickle
import socket
import sys
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ddp_core.errors import UserError
from ddp_train import data
from ddp_train.config.options import DataOptions
from ddp_train.data.sources import cifar10

torchvision_datasets = pytest.importorskip("torchvision.datasets")


def batch_files() -> dict[str, bytes]:
    """The seven files of cifar-10-batches-py in torchvision's format, of 20 images each."""
    random = np.random.default_rng(0)
    files = {"batches.meta": pickle.dumps({"label_names": list(cifar10.CLASSES)})}
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = random.integers(0, 256, (20, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({"data": pixels, "labels": random.integers(0, 10, 20).tolist()})
    return files


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Files whose checksums torchvision expects."""
    made = batch_files()
    sums = {name: hashlib.md5(content).hexdigest() for name, content in made.items()}
    monkeypatch.setattr(
        torchvision_datasets.CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)]
    )
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        torchvision_datasets.CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]},
    )
    return made


def unpack(files: dict[str, bytes], folder: Path) -> None:
    (folder / "cifar-10-batches-py").mkdir(parents=True)
    for name, content in files.items():
        (folder / "cifar-10-batches-py" / name).write_bytes(content)


def options(folder: Path, name: str | None = None) -> DataOptions:
    return DataOptions(dataset=name, data_dir=str(folder))  # type: ignore[arg-type]


@pytest.fixture
def archive(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A download archive of the files, with the checksum that torchvision expects."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "tgz_md5", hashlib.md5(buffer.getvalue()).hexdigest())
    return buffer.getvalue()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], str]]:
    """serve(content): a local server from which both the probe and torchvision download; returns its address."""
    servers = []

    def start(content: bytes) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
        point_to(url, monkeypatch)
        return url

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "url", url)
    monkeypatch.setattr(cifar10.unreachable, "__defaults__", (url, 4.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of this machine on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_to(f"http://127.0.0.1:{port}/cifar-10-python.tar.gz", monkeypatch)


def test_the_address_is_torchvisions() -> None:
    assert torchvision_datasets.CIFAR10.url == cifar10.URL


def test_torchvisions_files_are_read(tmp_path: Path, files: dict[str, bytes]) -> None:
    unpack(files, tmp_path / "data")
    assert data.resolve(options(tmp_path / "data")) == ("cifar10", None)
    data.prepare("cifar10", options(tmp_path / "data"))
    dataset = data.load("cifar10", options(tmp_path / "data"))
    assert dataset.classes == cifar10.CLASSES and dataset.image_shape == (3, 32, 32)
    assert len(dataset.train) == 100 and len(dataset.test) == 20
    batch = pickle.loads(files["test_batch"])  # noqa: S301 (our own)
    assert dataset.test.labels.tolist() == batch["labels"]
    assert np.array_equal(dataset.test.images, batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # type: ignore[arg-type]


def test_data_dir_may_point_at_torchvisions_folder_itself(tmp_path: Path, files: dict[str, bytes]) -> None:
    unpack(files, tmp_path)
    inner = options(tmp_path / "cifar-10-batches-py")
    assert data.resolve(inner) == ("cifar10", None)
    assert len(data.load("cifar10", inner).train) == 100


def test_the_cached_copy_needs_no_torchvision(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack(files, tmp_path / "data")
    data.prepare("cifar10", options(tmp_path / "data"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert len(data.load("cifar10", options(tmp_path / "data")).train) == 100


def test_a_file_with_a_wrong_checksum_is_refused_before_it_is_unpickled(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "executed",)

    unpack(files | {"data_batch_3": pickle.dumps(Harmful())}, tmp_path / "data")
    with pytest.raises(UserError, match="damaged") as caught:
        data.prepare("cifar10", options(tmp_path / "data"))
    assert "\n" not in str(caught.value) and not (tmp_path / "executed").exists()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", [None, "cifar10"])
def test_an_incomplete_folder_is_not_passed_over(tmp_path: Path, files: dict[str, bytes], name: str | None) -> None:
    unpack(files, tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(UserError, match=r"data_batch_4: is missing, and cannot be downloaded \(.*refused"):
        data.resolve(options(tmp_path, name))


def test_a_damaged_file_is_named_with_both_sums_and_nothing_is_unpickled(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    planted = tmp_path / "planted"

    class Planted:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (planted,)  # type: ignore[return-value]

    unpack(files | {"batches.meta": pickle.dumps(Planted())}, tmp_path)
    expected = hashlib.md5(files["batches.meta"]).hexdigest()
    with pytest.raises(UserError, match=rf"batches.meta: damaged \(MD5 \w+, the original has {expected}\)"):
        data.load("cifar10", options(tmp_path))
    assert not planted.exists()


def test_an_image_folder_of_cifar10(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(classes=cifar10.CLASSES, size=(32, 32), train=2, test=1)
    assert data.resolve(options(folder)) == ("cifar10", None)
    assert data.load("cifar10", options(folder)).image_shape == (3, 32, 32)


def test_another_image_folder_is_trained_on_as_what_it_is(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    name, note = data.resolve(options(folder))
    assert name == "folder" and note is not None and "2 classes" in note and "\n" not in note
    with pytest.raises(UserError, match="2 classes"):
        data.load("cifar10", options(folder, "cifar10"))


@pytest.mark.parametrize("name", ["folder", "digits", "synthetic"])
def test_a_name_is_taken_as_given(name: str, tmp_path: Path) -> None:
    assert data.resolve(options(tmp_path / "missing", name)) == (name, None)


@pytest.mark.usefixtures("no_network")
def test_without_a_network_digits_are_used_and_one_line_says_why(tmp_path: Path) -> None:
    started = time.monotonic()
    name, note = data.resolve(options(tmp_path / "data"))
    assert name == "digits" and time.monotonic() - started < 5
    assert note is not None and "\n" not in note
    assert str(tmp_path / "data") in note and "refused" in note and "digits" in note
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("no_network")
def test_asked_for_by_name_cifar10_never_falls_back(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dataset cifar10") as caught:
        data.resolve(options(tmp_path / "data", "cifar10"))
    assert "refused" in str(caught.value) and cifar10.URL in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [None, "cifar10"])
def test_a_download_ends_in_data(
    tmp_path: Path, archive: bytes, serve: Callable[[bytes], str], name: str | None
) -> None:
    serve(archive)
    found, note = data.resolve(options(tmp_path / "data", name))
    assert found == "cifar10" and note is not None and str(tmp_path / "data") in note
    assert len(data.load(found, options(tmp_path / "data")).train) == 100
    assert data.resolve(options(tmp_path / "data", name)) == ("cifar10", None)  # not again


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("whole", [True, False])
def test_an_archive_in_the_folder_needs_no_network(tmp_path: Path, archive: bytes, whole: bool) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive if whole else archive[:-1])
    name, note = data.resolve(options(tmp_path))
    assert name == ("cifar10" if whole else "digits") and note is not None
    assert ("was unpacked" if whole else "refused") in note


def test_scaled_images_are_not_held_in_memory(tmp_path: Path, files: dict[str, bytes]) -> None:
    unpack(files, tmp_path)
    tracemalloc.start()
    found = data.load("cifar10", replace(options(tmp_path), image_size=256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.train.images is not None and peak < found.train.images.nbytes


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("archive")
def test_a_download_of_something_else_is_not_used(tmp_path: Path, serve: Callable[[bytes], str]) -> None:
    serve(b"something else")
    name, note = data.resolve(options(tmp_path / "data"))
    assert name == "digits" and note is not None and "download failed" in note
    with pytest.raises(UserError, match="download failed"):
        data.resolve(options(tmp_path / "data", "cifar10"))


@pytest.mark.timeout(60)
def test_a_download_that_breaks_off_is_one_line_and_the_next_one_mends_it(
    tmp_path: Path, archive: bytes, serve: Callable[[bytes], str]
) -> None:
    serve(archive[: len(archive) // 2])
    with pytest.raises(UserError, match="download failed") as caught:
        data.resolve(options(tmp_path / "data", "cifar10"))
    assert "\n" not in str(caught.value)
    serve(archive)
    assert data.resolve(options(tmp_path / "data", "cifar10"))[0] == "cifar10"
    assert len(data.load("cifar10", options(tmp_path / "data")).train) == 100


@pytest.mark.timeout(60)
def test_a_folder_that_cannot_be_written_is_a_users_error(
    tmp_path: Path, archive: bytes, serve: Callable[[bytes], str]
) -> None:
    serve(archive)
    (tmp_path / "data").write_text("a file")
    with pytest.raises(UserError, match="--data-dir"):
        data.resolve(options(tmp_path / "data"))


@pytest.mark.timeout(60)
def test_a_silent_host_is_given_up_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        reason = cifar10.unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", 0.5)
        assert reason is not None and time.monotonic() - started < 3


@pytest.mark.timeout(60)
def test_a_name_server_that_hangs_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def hang(*args: object, **kwargs: object) -> None:
        done.wait(20)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    assert cifar10.unreachable("http://nowhere.invalid/", 0.3) == "no answer within 0.3 s"
    assert time.monotonic() - started < 10
    done.set()


@pytest.mark.parametrize(("status", "fine"), [(200, True), (405, True), (404, False), (503, False)])
def test_the_probe_reads_the_status(status: int, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        reason = cifar10.unreachable(f"http://127.0.0.1:{server.server_port}/")
        assert reason is None if fine else reason == f"HTTP status {status}"
