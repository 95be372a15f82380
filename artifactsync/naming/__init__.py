"""What things are called: run names, path templates, and the only builder of object keys (``layout``)."""

from __future__ import annotations

from artifactsync.naming.layout import RunLayout, check_relative, fold_case, safe_local_path, sibling
from artifactsync.naming.run_name import generate_run_name, resolve_run_name, validate_run_name
from artifactsync.naming.template import PLACEHOLDERS, format_name, render_path

__all__ = [
    "PLACEHOLDERS",
    "RunLayout",
    "check_relative",
    "fold_case",
    "format_name",
    "generate_run_name",
    "render_path",
    "resolve_run_name",
    "safe_local_path",
    "sibling",
    "validate_run_name",
]
