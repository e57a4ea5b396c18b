"""What a server is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """What a server allows.

    Args:
        name: of the model, as clients say it.
        keys: that clients must send, ``Authorization: Bearer KEY``; none asks for no key.
        hosts: that recordings may be fetched from by address; none fetches nothing.
        max_seconds: of a recording that is asked about; longer ones are refused, or cut into pieces by transcriptions.
        max_file_seconds: of a recording that is uploaded or transcribed.
        max_body_bytes: of a request.
        max_waiting_bytes: of the bodies of all requests that are read or answered; more are answered 429.
        max_connections: at the same time; one more ends the one that has been idle longest.
        header_seconds: that a connection may be idle, or take to say what it wants.
        body_seconds: that a body may take to come, beside a second for each 32 KiB.
        write_seconds: that a client may leave the 64 KiB of an answer that wait for it unread.
        stop_seconds: that answers may take to end when the server is told to.
        max_requests: that wait or run at the same time; more are answered 429.
        max_audio_seconds: of all recordings that wait or run.
        max_sessions: of realtime at the same time.
        upload_bytes: of samples of recordings that are kept for later questions; the least recently used go first.
        encode_uploads: whether recordings that are uploaded are encoded before there is a question.
        upload_folder: where they are kept too: several servers that have the same one see the same recordings.
        upload_folder_bytes: of it.
        decoders: processes that decode recordings at the same time.
        decode_seconds: that a recording may take to be decoded.
        idle_seconds: after which a realtime session that sends nothing is closed.
        step_seconds: that a step of the engine may take before ``/health`` says that it is stuck.
        max_new_tokens: of an answer whose request does not say.
        then_url: of the API of a text model that answers about captions; None leaves it to the model itself.
        then_model: its name; the first that is listed there if None.
        then_key: that it asks for.
        then_seconds: that it may take for an answer.
        log_content: whether prompts and answers are logged.
    """

    name: str = "afnext"
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    max_seconds: float = 1800.0
    max_file_seconds: float = 4 * 3600.0
    max_body_bytes: int = 512 << 20
    max_waiting_bytes: int = 2 << 30
    max_connections: int = 1024
    header_seconds: float = 20.0
    body_seconds: float = 30.0
    write_seconds: float = 60.0
    stop_seconds: float = 10.0
    max_requests: int = 256
    max_audio_seconds: float = 64 * 1800.0
    max_sessions: int = 32
    upload_bytes: int = 2 << 30
    encode_uploads: bool = True
    upload_folder: str | None = None
    upload_folder_bytes: int = 64 << 30
    decoders: int = 2
    decode_seconds: float = 120.0
    idle_seconds: float = 300.0
    step_seconds: float = 600.0
    max_new_tokens: int = 1024
    then_url: str | None = None
    then_model: str | None = None
    then_key: str | None = field(default=None, repr=False)
    then_seconds: float = 120.0
    log_content: bool = False
