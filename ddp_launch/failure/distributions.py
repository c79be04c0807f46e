"""Import name -> name of the distribution on PyPI, for packages that training programs import.

A name that is not listed is not guessed: PyPI may have another program of that name.
"""

from __future__ import annotations

_SAME = """
accelerate aiohttp albumentations av beartype bitsandbytes boto3 braceexpand catboost click cloudpickle colorama
colorlog dask datasets decord deepspeed diffusers dill einops evaluate fairscale fastapi fastparquet
filelock fire flask flax fsspec ftfy fvcore gdown gensim gpustat gym gymnasium h5py hdbscan httpx imageio iopath ipdb
jax jaxtyping jieba jinja2 joblib jsonargparse jsonlines keras kornia lightgbm lightning lmdb loguru lpips
lxml matplotlib mlflow monai mpi4py msgpack networkx nibabel ninja nltk numba numpy ogb omegaconf onnx onnxruntime
open3d optuna orjson packaging pandas peft pillow piq plotly polars prettytable protobuf psutil ptflops pyarrow
pybind11 pycocotools pydantic pydicom pytest ray rdkit redis regex requests rich sacrebleu safetensors schedulefree
scipy seaborn sentencepiece setuptools shapely simplejson six soundfile spacy statsmodels submitit sympy tables tabulate
tensorboard tensorboardX tensordict tensorflow termcolor thop tiktoken timm tokenizers toml tomli torch torchao
torchaudio torchcodec torchdata torchmetrics torchrl torchtext torchtune torchvision tqdm transformers trimesh triton
trl typeguard typer typing_extensions tyro ujson visdom wandb webdataset xarray xformers xgboost yacs zarr zstandard
"""
_OTHERS = {
    "absl": "absl-py",
    "attr": "attrs",
    "Bio": "biopython",
    "bs4": "beautifulsoup4",
    "comet_ml": "comet-ml",
    "Crypto": "pycryptodome",
    "cv2": "opencv-python-headless",
    "dataclasses_json": "dataclasses-json",
    "dateutil": "python-dateutil",
    "distutils": "setuptools",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "PyMuPDF",
    "flash_attn": "flash-attn --no-build-isolation",
    "git": "GitPython",
    "google.cloud.storage": "google-cloud-storage",
    "google.protobuf": "protobuf",
    "GPUtil": "GPUtil",
    "huggingface_hub": "huggingface-hub",
    "hydra": "hydra-core",
    "IPython": "ipython",
    "jwt": "PyJWT",
    "Levenshtein": "Levenshtein",
    "lightning_fabric": "lightning-fabric",
    "lion_pytorch": "lion-pytorch",
    "ml_collections": "ml-collections",
    "ml_dtypes": "ml-dtypes",
    "mpl_toolkits": "matplotlib",
    "open_clip": "open-clip-torch",
    "OpenSSL": "pyOpenSSL",
    "PIL": "Pillow",
    "pkg_resources": "'setuptools<81'",
    "psycopg2": "psycopg2-binary",
    "pynvml": "nvidia-ml-py",
    "pytorch_lightning": "pytorch-lightning",
    "pytorch_msssim": "pytorch-msssim",
    "pywt": "PyWavelets",
    "rouge_score": "rouge-score",
    "ruamel.yaml": "ruamel.yaml",
    "sentence_transformers": "sentence-transformers",
    "serial": "pyserial",
    "SimpleITK": "SimpleITK",
    "simple_parsing": "simple-parsing",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "stable_baselines3": "stable-baselines3",
    "torch_ema": "torch-ema",
    "torch_geometric": "torch-geometric",
    "transformer_engine": "'transformer-engine[pytorch]'",
    "umap": "umap-learn",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}
DISTRIBUTIONS = {name: name.replace("_", "-") for name in _SAME.split()} | _OTHERS

ELSEWHERE = {
    "apex": "NVIDIA's apex is built from its sources (PyPI's apex is another program); torch.amp, torch.optim and"
    " DistributedDataParallel do the same",
    "clip": "OpenAI's CLIP is installed from its repository (PyPI's clip is another program)",
    "detectron2": "detectron2 is installed from its repository",
    "megatron": "Megatron is installed from its repository",
    "torch_xla": "torch_xla comes in a build for each version of torch",
    "_lzma": "Python was built without it: install liblzma's development files, then build Python again",
    "_ctypes": "Python was built without it: install libffi's development files, then build Python again",
    "_sqlite3": "Python was built without it: install sqlite3's development files, then build Python again",
    "tkinter": "the system's package for it (Debian and Ubuntu: python3-tk); on a server MPLBACKEND=Agg needs none",
}
"""Packages that pip cannot install by that name, and where to get them."""


def distribution(module: str) -> str | None:
    """The arguments of `pip install` for a module; None where they are not known."""
    parts = module.split(".")
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((DISTRIBUTIONS[name] for name in names if name in DISTRIBUTIONS), None)
