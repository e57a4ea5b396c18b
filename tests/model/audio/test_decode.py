"""Loading, resampling and windowing of audio, and every kind of recording that must be refused."""

import io
import warnings

import numpy as np
import pytest
import soundfile
import torch

from afn_model.audio.decode import array_to_pcm, load_audio
from afn_model.audio.frames import (
    MIN_SAMPLES,
    SAMPLE_RATE,
    WINDOW,
    audio_tokens,
    conv_frames,
    mel_frames,
    split_windows,
    token_frames,
)
from afn_model.audio.resample import KAISER
from tests.budget import assert_within


def rounding(rate: int, signal) -> float:
    """What adding up a resampling filter's products in float32 may lose: a random walk of one rounding for each tap."""
    taps = 2 * KAISER["lowpass_filter_width"] * max(1, rate / SAMPLE_RATE)
    return taps**0.5 * torch.finfo(torch.float32).eps * float(abs(signal).max())


def tone(seconds, rate=SAMPLE_RATE, channels=1, hertz=440.0):
    time = np.arange(round(seconds * rate)) / rate
    signal = 0.5 * np.sin(2 * np.pi * hertz * time) + 0.01 * np.random.default_rng(0).standard_normal(time.size)
    return np.stack([signal * (1 + channel) / channels for channel in range(channels)], axis=1).astype(np.float32)


def encoded(samples, rate=SAMPLE_RATE, container="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def without_info_header(mp3):
    second = mp3.find(mp3[:2], 4)
    assert b"Xing" in mp3[:second] or b"Info" in mp3[:second]
    return mp3[second:]


# Lengths


@pytest.mark.parametrize("n", [1, 160, 161, 320, 321, 48_000, 100_001, WINDOW - 1, WINDOW])
def test_mel_frames_are_the_feature_extractors_valid_frames(n):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    features = extractor([np.zeros(n, np.float32)], sampling_rate=SAMPLE_RATE, return_attention_mask=True)
    assert mel_frames(n) == int(features["attention_mask"][0].sum())


def test_token_formulas():
    assert [conv_frames(mel) for mel in (0, 1, 2, 3, 3000)] == [0, 1, 1, 2, 1500]
    assert [token_frames(conv) for conv in (0, 1, 2, 3, 1500)] == [0, 0, 1, 1, 750]
    assert audio_tokens(MIN_SAMPLES) == 1
    assert audio_tokens(MIN_SAMPLES - 1) == 0
    assert audio_tokens(1800 * SAMPLE_RATE) == 45_000
    for mel in range(1, 3001):
        assert token_frames(conv_frames(mel)) == ((mel - 1) // 2 + 1 - 2) // 2 + 1


@pytest.mark.parametrize("n", [321, 5_000, WINDOW, WINDOW + 320, WINDOW + 321, 2 * WINDOW + 77_777])
def test_windows_hold_the_clip_and_zeros(n):
    pcm = torch.randn(n)
    windows, samples = split_windows(pcm)
    assert sum(token_frames(conv_frames(mel_frames(int(s)))) for s in samples) == audio_tokens(n)
    assert windows.shape[1] % 160 == 0
    assert windows.shape[1] >= min(WINDOW, int(samples.max()) + 480)
    kept = torch.cat([row[:count] for row, count in zip(windows, samples.tolist(), strict=True)])
    assert torch.equal(kept, pcm[: kept.numel()])
    assert 0 <= n - kept.numel() < MIN_SAMPLES
    assert float(windows[-1, int(samples[-1]) :].abs().sum()) == 0


# Decoding


@pytest.mark.parametrize(
    ("container", "subtype", "tolerance"),
    [("WAV", "PCM_16", 4e-5), ("WAV", "FLOAT", 0), ("FLAC", None, 4e-5), ("OGG", None, 0.05), ("MP3", None, 0.05)],
)
def test_formats_slices_and_kinds_of_source(tmp_path, container, subtype, tolerance):
    samples = tone(3.0)
    data = encoded(samples, container=container, subtype=subtype)
    path = tmp_path / f"a.{container.lower()}"
    path.write_bytes(data)
    whole = load_audio(path)
    assert whole.dtype == torch.float32
    assert whole.shape == (48_000,)
    assert float((whole - torch.from_numpy(samples[:, 0])).abs().max()) <= tolerance
    for source in (str(path), data, io.BytesIO(data)):
        assert torch.equal(load_audio(source), whole)
    assert torch.equal(load_audio(path, start=0.5, end=2.25), whole[8_000:36_000])
    assert torch.equal(load_audio(path, start=2.0), whole[32_000:])
    assert torch.equal(load_audio(path, end=3.009), whole)
    integers = load_audio(path, dtype=torch.int16)
    assert float((integers.float() / 32768 - whole).abs().max()) <= 1 / 65536 + 1e-7


def test_channels_are_averaged_and_rates_converted(tmp_path):
    for rate, channels in ((8_000, 1), (22_050, 2), (44_100, 6), (48_000, 2), (192_000, 6)):
        path = tmp_path / f"{rate}.wav"
        soundfile.write(path, tone(1.5, rate, channels), rate, subtype="FLOAT")
        mono = tone(1.5, rate, channels).mean(axis=1)
        pcm = load_audio(path)
        assert pcm.shape == (24_000,)
        assert_within(pcm, array_to_pcm(mono, rate), rounding(rate, mono))
        expected = torch.from_numpy(tone(1.5)[:, 0]) * mono.std() / tone(1.5).std()
        assert float((pcm - expected)[400:-400].pow(2).mean().sqrt()) < 0.02


def test_arrays():
    samples = tone(1.0)[:, 0]
    assert torch.equal(array_to_pcm(samples), torch.from_numpy(samples))
    assert torch.equal(
        array_to_pcm(torch.from_numpy(samples).double(), start=0.25, end=0.5).float(),
        torch.from_numpy(samples)[4_000:8_000],
    )
    integers = (samples * 32768).astype(np.int16)
    assert torch.equal(array_to_pcm(integers) * 32768, torch.from_numpy(integers).float())
    assert torch.equal(array_to_pcm(integers, dtype=torch.int16), torch.from_numpy(integers))


# Refusals


def bad_files():
    good = tone(1.0)
    poisoned, infinite = good.copy(), good.copy()
    poisoned[12_345] = np.nan
    infinite[:, 0] = np.inf
    mp3 = encoded(good, container="MP3")
    ogg = encoded(good, container="OGG")
    flac = encoded(good, container="FLAC")
    hole = mp3[: len(mp3) // 2] + bytes(1500) + mp3[len(mp3) // 2 + 1500 :]
    flip = len(ogg) // 2
    return {
        "empty": (b"", "empty"),
        "text": (b"this is not audio, whatever its name says\n" * 20, "not audio"),
        "no-samples": (encoded(good[:0]), "the recording is empty: there are no samples"),
        "nan": (encoded(poisoned, subtype="FLOAT"), "NaN or Inf sample at 0.772 s"),
        "inf": (encoded(infinite, subtype="FLOAT"), "NaN or Inf sample at 0.000 s"),
        "huge": (encoded(good * np.float32(1e30), subtype="FLOAT"), "full scale"),
        "short": (encoded(good[:160]), "0.0100 s is too short: one audio token needs 0.0201 s"),
        "slow": (encoded(good, rate=4_000), "sample rate 4000 Hz"),
        "fast": (encoded(good, rate=200_000), "sample rate 200000 Hz"),
        "wav-cut": (encoded(good)[:-10_000], "truncated: 0.69 s of 1.00 s are there"),
        "wav-header-only": (encoded(good)[:44], "truncated"),
        "aiff-cut": (encoded(good, container="AIFF")[:-10_000], "truncated"),
        "flac-cut": (flac[: len(flac) // 2], "truncated"),
        "flac-end": (flac[:-10], "damaged"),
        "ogg-cut": (ogg[: len(ogg) // 2], "damaged or truncated.*its last page is incomplete"),
        "ogg-flip": (ogg[:flip] + bytes([ogg[flip] ^ 4]) + ogg[flip + 1 :], "damaged.*wrong checksum"),
        "mp3-cut": (mp3[: len(mp3) // 2], "truncated"),
        "mp3-hole": (hole, "truncated"),
        "mp3-noise": (mp3[:1_000] + np.random.default_rng(0).bytes(3_000) + mp3[4_000:], "truncated"),
        "mp3-tag-only": (b"ID3\x04\x00\x00\x00\x00\x00\x10" + bytes(16), "not audio"),
        "mp3-torn-start": (without_info_header(mp3)[:60], "not audio"),
        "mp4-cut": (b"\0\0\0\x1cftypM4A " + bytes(4_000), r"truncated mp4: its index \(moov\)"),
    }


@pytest.mark.parametrize("name", list(bad_files()))
def test_bad_files_are_refused_in_one_line_that_names_them(tmp_path, name):
    data, problem = bad_files()[name]
    path = tmp_path / f"{name}.audio"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=problem) as error:
        load_audio(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=problem):
        load_audio(data)


def test_bad_paths(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.wav: no such file"):
        load_audio(tmp_path / "absent.wav")
    with pytest.raises(ValueError, match="is a directory"):
        load_audio(tmp_path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_audio(tmp_path / ("x" * 300))
    with pytest.raises(ValueError, match="only local files"):
        load_audio("https://example.org/a.wav")
    (tmp_path / "a.raw").write_bytes(bytes(32_000))
    with pytest.raises(ValueError, match=r"a\.raw: not audio"):
        load_audio(tmp_path / "a.raw")


@pytest.mark.parametrize(
    ("start", "end", "problem"),
    [
        (-1.0, None, "start -1.0 s is outside"),
        (3.0, None, "start 3.0 s is outside the recording of 2.000 s"),
        (float("nan"), None, "start nan s"),
        (None, 2.5, "end 2.5 s is outside the recording of 2.000 s"),
        (1.5, 1.0, "end 1.0 s is not after start 1.5 s"),
        (1.0, 1.01, "too short"),
    ],
)
def test_parts_outside_the_recording(start, end, problem):
    for container in ("WAV", "FLAC", "OGG", "MP3"):
        with pytest.raises(ValueError, match=problem):
            load_audio(encoded(tone(2.0), container=container), start=start, end=end)
    with pytest.raises(ValueError, match=problem):
        array_to_pcm(tone(2.0)[:, 0], start=start, end=end)


@pytest.mark.parametrize(
    ("array", "rate", "problem"),
    [
        (np.zeros((2, 1000), np.float32), 16_000, "1-D"),
        (np.zeros(0, np.float32), 16_000, "no samples"),
        (np.full(1000, np.nan), 16_000, "NaN or Inf"),
        (np.zeros(100), 16_000, "too short"),
        (np.zeros(1000), 500, "sample rate 500"),
        (np.zeros(1000, np.uint8), 16_000, "uint8"),
    ],
)
def test_bad_arrays(array, rate, problem):
    with pytest.raises(ValueError, match=problem):
        array_to_pcm(array, rate)


def test_thirty_one_minutes(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(SAMPLE_RATE * 31 * 60, np.int16), SAMPLE_RATE, subtype="PCM_U8")
    with pytest.warns(UserWarning, match=r"long\.wav: longer than 1800 s"):
        pcm = load_audio(path, dtype=torch.int16)
    assert pcm.numel() == 1800 * SAMPLE_RATE
    with pytest.raises(ValueError, match=r"long\.wav: longer than 1800 s"):
        load_audio(path, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_audio(path, start=1830.0, strict=True).numel() == 30 * SAMPLE_RATE
        assert load_audio(path, start=1.0, end=61.0, max_seconds=60, strict=True).numel() == 60 * SAMPLE_RATE
    with pytest.raises(ValueError, match="longer than 60 s"):
        load_audio(path, end=60.001, max_seconds=60, strict=True)


def test_streams_that_do_not_state_their_length_are_whole():
    samples = tone(2.0)
    wav = bytearray(encoded(samples))
    position = wav.find(b"data") + 4
    wav[position : position + 4] = b"\xff\xff\xff\xff"
    assert load_audio(bytes(wav)).numel() == 32_000
    flac = bytearray(encoded(samples, container="FLAC"))
    flac[8 + 13] &= 0xF0  # the 36 bits of STREAMINFO that count samples
    flac[8 + 14 : 8 + 18] = bytes(4)
    assert load_audio(bytes(flac)).numel() == 32_000
    with pytest.raises(ValueError, match="end 3 s is outside"):
        load_audio(bytes(flac), end=3)


def test_mp3_without_a_frame_count():
    # Loud after quiet: a guess from the first frame's bit rate is far off.
    samples = tone(8.0)
    samples[:64_000] *= 1e-3
    mp3 = encoded(samples, container="MP3")
    bare = without_info_header(mp3)
    pcm = load_audio(bare)
    assert 0 <= pcm.numel() - 128_000 < 3 * 1152
    assert torch.equal(load_audio(bare, start=5.0, end=6.0), pcm[80_000:96_000])


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_without_a_frame_count_at_its_smallest(rate, channels):
    file = io.BytesIO()
    options = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 0.95}
    soundfile.write(file, tone(3.0, rate, channels), rate, **options)
    assert b"Info" not in file.getvalue()  # the encoder leaves it out where a frame is too small
    pcm = load_audio(file.getvalue())
    assert 0 <= pcm.numel() - 48_000 < 3 * 1152
    delay = 1105 * SAMPLE_RATE // rate  # of encoder and decoder, which the header would have told
    expected = torch.from_numpy(tone(3.0)[:40_000, 0])
    shifted = [pcm[shift : shift + 40_000] for shift in range(delay - 5, delay + 6)]
    assert max(float(torch.corrcoef(torch.stack([row, expected]))[0, 1]) for row in shifted) > 0.99


def test_an_id3_tag_before_another_format():
    flac = encoded(tone(1.0), container="FLAC")
    assert torch.equal(load_audio(b"ID3\x04\x00\x00\x00\x00\x00\x10" + bytes(16) + flac), load_audio(flac))


def test_channels_that_cancel_each_other_are_warned_of():
    left = tone(2.0)[:, :1]
    with pytest.warns(UserWarning, match="the channels cancel each other"):
        pcm = load_audio(encoded(np.concatenate([left, -left], axis=1), subtype="FLOAT"))
    assert not pcm.any()
    quiet = np.concatenate([left, left], axis=1) * np.float32(1e-3)
    sometimes = np.concatenate([np.concatenate([left, -left], axis=1), np.repeat(left, 2, axis=1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio(encoded(quiet, subtype="FLOAT"))
        load_audio(encoded(sometimes, subtype="FLOAT"))
        load_audio(encoded(np.zeros((32_000, 2), np.float32)))


def test_floats_in_units_of_integers_are_warned_of():
    for given in (encoded(tone(1.0) * 20_000, subtype="FLOAT"),):
        with pytest.warns(UserWarning, match=r"samples reach 1\.\d+e\+04 where full scale is 1"):
            load_audio(given)
    with pytest.warns(UserWarning, match="audio array: samples reach"):
        array_to_pcm(tone(1.0)[:, 0] * 20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio(encoded(tone(1.0) * 4, subtype="FLOAT"))  # loud, but such recordings there are


def test_an_array_with_a_rate_that_is_a_float():
    samples = tone(1.0, 44_100)[:, 0]
    assert torch.equal(array_to_pcm(samples, 44_100.0), array_to_pcm(samples, 44_100))
    for rate in (44_100.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="is not a whole number"):
            array_to_pcm(samples, rate)


def test_a_web_page_that_was_saved_as_an_mp3_is_refused_in_one_line(tmp_path, capfd):
    path = tmp_path / "talk.MP3"
    path.write_text("<html>Not found</html>" + "x" * 5000)
    with pytest.raises(ValueError, match="not audio"):
        load_audio(path)
    assert capfd.readouterr() == ("", "")
