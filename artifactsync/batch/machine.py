"""Whose machine this is: Amazon's, Google's or Microsoft's, without a single packet.

Owns: reading what the firmware and the environment say. Does not own: asking a metadata server (``notice_sources``).

Invariant: on a machine of nobody's, nothing is ever sent to a metadata address.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from artifactsync.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTICE_VARIABLE = "ARTIFACTSYNC_NOTICE"
"""``off``: ask nobody. ``aws``, ``gcp``, ``azure``: ask that one, whatever the machine looks like."""

DMI_FOLDER = Path("/sys/class/dmi/id")
"""What Linux shows of the firmware's tables; readable in containers too."""

CLOUDS = ("aws", "gcp", "azure")

# Source (2026-11-22): https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html,
# https://cloud.google.com/compute/docs/instances/detect-compute-engine, and cloud-init's DataSourceAzure.
_VENDORS = {"Amazon EC2": "aws", "Google": "gcp", "Google Compute Engine": "gcp"}
_AZURE_ASSET_TAG = "7783-7084-3265-9085-8269-3286-77"  # Hyper-V at home has Microsoft's vendor name as well
_ADDRESS_VARIABLES = {
    "AWS_EC2_METADATA_SERVICE_ENDPOINT": "aws",
    "GCE_METADATA_HOST": "gcp",
    "ARTIFACTSYNC_AZURE_METADATA_ENDPOINT": "azure",
}
_OFF = {"aws": "AWS_EC2_METADATA_DISABLED", "gcp": "NO_GCE_CHECK"}
# Managed services whose containers reach no metadata server with a notice: they send SIGTERM.
_WITHOUT_NOTICE = {"AWS_ECS_FARGATE", "AWS_ECS_MANAGED_INSTANCES"}


def cloud_of_machine(environ: Mapping[str, str] = os.environ, *, dmi_folder: Path = DMI_FOLDER) -> str:
    """Return whose metadata server may be asked for a notice: ``aws``, ``gcp``, ``azure``, or nothing for nobody's.

    Args:
        environ: Environment variables. An address of a metadata server in them counts as its cloud; the clouds' own
            switches (``AWS_EC2_METADATA_DISABLED``, ``NO_GCE_CHECK``) are kept.
        dmi_folder: Where the firmware's tables are.

    Raises:
        ConfigurationError: ``ARTIFACTSYNC_NOTICE`` names no cloud.
    """
    said = environ.get(NOTICE_VARIABLE, "").strip().lower()
    if said in {"off", "0", "no", "false"}:
        return ""
    if said and said not in CLOUDS:
        raise ConfigurationError(
            f"{NOTICE_VARIABLE} is {said!r}", hint=f"{NOTICE_VARIABLE} is off, {', '.join(CLOUDS)}, or not set"
        )
    found = said or _by_address(environ) or _by_firmware(dmi_folder)
    if not said and found in _OFF and environ.get(_OFF[found], "").strip().lower() in {"1", "true"}:
        return ""
    if found == "aws" and not said and environ.get("AWS_EXECUTION_ENV") in _WITHOUT_NOTICE:
        return ""
    return found


def _by_address(environ: Mapping[str, str]) -> str:
    return next((cloud for name, cloud in _ADDRESS_VARIABLES.items() if environ.get(name, "").strip()), "")


def _by_firmware(folder: Path) -> str:
    for name in ("sys_vendor", "product_name"):
        if cloud := _VENDORS.get(_line(folder / name)):
            return cloud
    return "azure" if _line(folder / "chassis_asset_tag") == _AZURE_ASSET_TAG else ""


def _line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
