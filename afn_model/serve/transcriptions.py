"""``/v1/audio/transcriptions`` and ``/v1/audio/translations``."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
