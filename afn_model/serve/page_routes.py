"""The page, and the pictures of a recording that it shows."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
