from pathlib import Path

from setuptools import setup

root = Path(__file__).parent
version = next(line.split('"')[1] for line in (root / "npref/__init__.py").read_text().splitlines() if line.startswith("__version__"))

extras = {
    "cuda12": ["cupy-cuda12x>=13"],
    "cuda13": ["cupy-cuda13x>=13.6"],
    "adapters": ["torch>=2.4", "jax>=0.4.34"],
    "examples": ["matplotlib>=3.8.4", "pillow>=10", "tqdm>=4.60"],
    "notebook": ["matplotlib>=3.8.4", "jupyterlab>=4"],
    "test": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "matplotlib>=3.8.4", "pillow>=10", "tqdm>=4.60"],
}

setup(
    name="npref",
    version=version,
    description="Reference implementation of node perturbation learning (NP, INP, ANP and their decorrelated forms) on NumPy and CuPy",
    long_description=(root / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=["npref", "npref.datasets", "npref.oracle"],
    python_requires=">=3.10",
    install_requires=["numpy>=2.1", "scipy>=1.13", "h5py>=3.11"],
    extras_require=extras,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
