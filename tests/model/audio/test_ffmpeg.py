"""What FFmpeg decodes, from where, and what it must not open."""

import io
import subprocess
import sys
import warnings
from functools import lru_cache

import numpy as np
import pytest
import torch

from afn_model.audio import ffmpeg
from afn_model.audio.decode import audio_seconds, load_audio
from afn_model.audio.ffmpeg import AudioFile, mix_down
from afn_model.audio.source import read_source
from bench.recordings import encode, heard, ladder, sound_file
from tests.budget import assert_within, largest

EPS = torch.finfo(torch.float32).eps


def noisy(seconds, rate, channels=1):
    noise = np.random.default_rng(0).standard_normal((round(seconds * rate), channels))
    return (ladder(seconds, rate, channels) + 0.02 * noise).astype(np.float32)


@lru_cache(maxsize=1)
def formats():
    """(bytes, samples longer than what was encoded, at 16 kHz) by name."""
    cd, dat = noisy(6, 44_100, 2), noisy(6, 48_000, 2)
    return {
        "wav": (sound_file(cd, 44_100, "WAV", "PCM_24"), 0),
        "w64": (sound_file(cd, 44_100, "W64", "FLOAT"), 0),
        "rf64": (sound_file(cd, 44_100, "RF64", "PCM_16"), 0),
        "aiff": (sound_file(cd, 44_100, "AIFF", "PCM_16"), 0),
        "caf": (sound_file(cd, 44_100, "CAF", "PCM_32"), 0),
        "au": (sound_file(cd, 44_100, "AU", "DOUBLE"), 0),
        "u8": (sound_file(cd, 44_100, "WAV", "PCM_U8"), 0),
        "flac": (encode(cd, 44_100, "flac"), 0),
        "flac24": (sound_file(cd, 44_100, "FLAC", "PCM_24"), 0),
        "mp3": (encode(cd, 44_100, "mp3"), 0),
        "vorbis": (sound_file(cd, 44_100, "OGG", "VORBIS"), 0),
        "opus": (encode(dat, 48_000, "opus"), 0),
        "m4a": (encode(cd, 44_100, "m4a"), 0),
        "alac": (encode(cd, 44_100, "m4a", name="alac"), 0),
        "aac": (encode(cd, 44_100, "adts"), 2048),
        "webm": (encode(dat, 48_000, "webm"), 0),
        "mkv": (encode(cd, 44_100, "matroska", name="flac"), 0),
        "mpegts": (encode(cd, 44_100, "mpegts"), 2048),
        "ac3": (encode(cd, 44_100, "ac3"), 2048),
    }


def test_a_whole_voc_is_taken_for_whole():
    recording = sound_file(noisy(2, 16_000), 16_000, "VOC", "PCM_16")
    assert load_audio(recording, strict=True).numel() == 32_000
    assert audio_seconds(read_source(recording)) == 2.0


def test_the_padding_of_a_long_frame_is_left_out():
    # At 8 kHz a frame of AAC lasts 0.128 s, most of which may be padding.
    encoded = encode(noisy(10, 8_000), 8_000, "3gp", name="aac")
    assert load_audio(encoded).numel() / 16_000 == pytest.approx(audio_seconds(read_source(encoded)), abs=1e-3)


NOISE_SUBSTITUTED = {"m4a", "aac", "mpegts"}  # the decoder of AAC draws noise of its own where the encoder left it out


@pytest.mark.parametrize("name", list(formats()))
def test_a_format_is_whole_and_its_parts_are_parts_of_it(name, tmp_path):
    data, longer = formats()[name]
    whole = load_audio(data)
    assert 0 <= whole.numel() - 96_000 <= longer
    assert heard(whole)[:5] == [0, 1, 2, 3, 4]
    path = tmp_path / "a.recording"
    path.write_bytes(data)
    assert torch.equal(load_audio(path), whole)
    # A part begins and ends where the same samples of the whole do; the resampling filter reaches 10 ms beyond.
    part, inside = load_audio(path, start=3.25, end=5.0), slice(200, -200)
    assert part.numel() == 28_000
    expected = whole[52_000:80_000]
    tolerance = 400**0.5 * EPS * float(whole.abs().max())
    if name in NOISE_SUBSTITUTED:  # by numbers that depend on where decoding began
        elsewhere = [load_audio(path, start=start, end=5.0)[-28_000:] for start in (0.5, 1.1, 1.8, 2.4, 2.9)]
        tolerance += 2 * largest([float((one - expected)[inside].abs().max()) for one in elsewhere])
    assert_within(part[inside], expected[inside], tolerance)


@pytest.mark.parametrize("name", ["flac", "mp3", "opus", "m4a"])
def test_what_lies_before_a_part_is_not_decoded(name):
    data, _ = formats()[name]
    file = AudioFile(data)
    decoded = sum(block.pcm.numel() for block in file.blocks(5.0))
    assert decoded / file.rate < 2.5
    assert 3.5 < file.begin / file.rate <= 5.0 - ffmpeg.PREROLL + 0.1


def test_time_stamps_that_jump_are_not_believed():
    """Two transport streams joined: the second begins at 0 s again."""
    data = encode(ladder(3), 16_000, "mpegts") + encode(ladder(3, first=3), 16_000, "mpegts")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert heard(load_audio(data))[:3] == [0, 1, 2]
        assert heard(load_audio(data, start=4.2, end=5.2)) == [4]


def test_eight_channels_and_more_are_mixed():
    steps = np.arange(1, 9, dtype=np.float32)
    wave = 0.1 * np.sin(2 * np.pi * 440 * np.arange(96_000) / 48_000)[:, None] * steps
    exact = load_audio(sound_file(wave[:, :1] * 4.5, 48_000, "WAV", "FLOAT"))
    for container, codec, tolerance in (("WAV", "FLOAT", 32 * EPS), ("OGG", "VORBIS", 0.05)):
        pcm = load_audio(sound_file(wave, 48_000, container, codec))
        assert_within(pcm, exact, tolerance)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.float32, torch.float64])
def test_the_mix_is_the_mean_of_the_channels(dtype):
    full = {torch.uint8: 2**7, torch.int16: 2**15, torch.int32: 2**31}.get(dtype, 1)
    planes = torch.rand(3, 1000, dtype=torch.float64) * 1.9 - 0.95
    stored = (planes * full + (128 if dtype == torch.uint8 else 0)).round() if full > 1 else planes
    stored = stored.to(dtype)
    values = (stored.double() - (128 if dtype == torch.uint8 else 0)) / full
    for channels in (1, 2, 3):
        block = mix_down(stored[:channels], 16_000)
        assert block.pcm.dtype == torch.float32
        assert_within(block.pcm, values[:channels].mean(0), 4 * EPS)


def test_of_a_video_the_sound_is_played():
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        resampler = av.AudioResampler("fltp", "mono", 16_000, frame_size=1024)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(ladder(3).T), "flt", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        for number in range(30):
            image = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 8 * number, np.uint8), "rgb24")
            container.mux(picture.encode(image))
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(sound.encode(piece))
        container.mux(picture.encode(None))
        container.mux(sound.encode(None))
    assert heard(load_audio(file.getvalue())) == [0, 1, 2]


def test_a_video_without_sound_is_no_recording():
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        container.mux(picture.encode(None))
    with pytest.raises(ValueError, match="there is no audio in it"):
        load_audio(file.getvalue())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{wav}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile '{wav}'\n"),
        ("session.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"),
        ("list.mpd", '<?xml version="1.0"?><MPD><Period><BaseURL>{wav}</BaseURL></Period></MPD>'),
    ],
)
def test_a_file_that_names_other_files_opens_none_of_them(name, text, tmp_path):
    wav = tmp_path / "secret.wav"
    wav.write_bytes(sound_file(ladder(3), 16_000, "WAV"))
    (tmp_path / name).write_text(text.format(wav=wav))
    with pytest.raises(ValueError, match="not audio"):
        load_audio(tmp_path / name)


def test_a_name_is_a_name_and_not_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wav = sound_file(ladder(2), 16_000, "WAV")
    for name in ("concat:a.wav|b.wav", "data:audio", "tcp:80", "a%20b?.wav", "-x.wav"):
        (tmp_path / name).write_bytes(wav)
        assert heard(load_audio(name)) == [0, 1]


def test_hours_in_a_hole_and_headers_that_promise_everything_are_cheap(tmp_path):
    header = bytearray(sound_file(ladder(1), 16_000, "WAV", "PCM_16")[:44])
    header[40:44] = (0x70000000).to_bytes(4, "little")
    path = tmp_path / "hole.wav"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(44 + 0x70000000)  # 16 hours
    with pytest.warns(UserWarning, match="longer than 60 s"):
        assert load_audio(path, max_seconds=60).numel() == 60 * 16_000
    for at, value in ((22, b"\xff\xff"), (24, b"\xff\xff\xff\xff"), (34, b"\xff\xff")):  # channels, rate, bits
        bomb = bytearray(header) + bytes(1000)
        bomb[at : at + len(value)] = value
        with pytest.raises(ValueError):
            load_audio(bytes(bomb))


def test_the_decoder_is_imported_when_a_recording_is():
    code = "import sys, afn_model.prompt.processor; assert not {'av', 'soundfile'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
