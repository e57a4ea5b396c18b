"""``/v1/realtime``: transcription while a recording comes."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
