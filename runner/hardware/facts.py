"""What a measurement was made with: device and driver, packages, system, processor, disk. Keys are the GCU port's."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.hardware import Hardware

PACKAGES = ("torch", "diffusers", "transformers", "Pillow", "torch-gcu", "torch-npu", "TopsInference", "opencv-python")


def gather(hardware: Hardware) -> dict[str, dict[str, Any]]:
    """The port's sections beside performance_info; what is not there, or says nothing of speed, is an empty text."""
    described = hardware.describe()
    return {
        "device_info": {
            "Dev Name": described.get("device", ""),
            "Ver": _driver(described),
            "GCU CLK": "",
            "Mem CLK": "",
        }
        | {key: value for key, value in described.items() if key != "device"},
        "deb_info": dict.fromkeys(("topsruntime", "tops-sdk", "tops-inference", "topsaten"), ""),
        "python_info": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "os_info": {"os_distrb_name": _distribution(), "os_kernel_version": platform.release()},
        "cpu_info": _processor(),
        "disk_info": {"disk_model": _disk()},
        "host_info": {"host_name": platform.node(), "host_ip": ""},
    }


def _driver(described: dict[str, Any]) -> str:
    if "cuda" in described:  # the driver says its version in the first line of this file
        return _lines("/proc/driver/nvidia/version", ":").get("NVRM version", str(described["cuda"]))
    return str(described.get("driver", ""))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _lines(file: str, separator: str) -> dict[str, str]:
    try:
        pairs = (line.partition(separator) for line in Path(file).read_text().splitlines())
        return {key.strip(): value.strip().strip('"') for key, _, value in pairs}
    except OSError:
        return {}


def _distribution() -> str:
    return _lines("/etc/os-release", "=").get("PRETTY_NAME", platform.system())


def _processor() -> dict[str, str]:
    found = _lines("/proc/cpuinfo", ":")
    return {
        "cpu_arch": platform.machine(),
        "cpu_model_name": found.get("model name", platform.processor()),
        "cpu_vendor": found.get("vendor_id", ""),
    }


def _disk() -> str:
    for file in sorted(Path("/sys/block").glob("*/device/model")):
        try:
            return file.read_text().strip()
        except OSError:
            continue
    return ""
