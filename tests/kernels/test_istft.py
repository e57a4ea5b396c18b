"""istft against torch's transforms, in chunks, and against what its docstring promises."""

import pytest
import torch

import afn_kernels as ak
from tests.budget import assert_within

IMPLS = ["triton", "reference"]


def spectra(pcm: torch.Tensor, window: torch.Tensor, hop: int) -> torch.Tensor:
    """[B, F, W / 2 + 1, 2] of frames that begin with the first sample."""
    return torch.view_as_real(torch.stft(pcm, len(window), hop, window=window, center=False, return_complex=True).mT)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("size", "hop"), [(32, 8), (20, 7), (2048, 512)])
def test_it_gives_back_what_was_transformed(impl, size, hop, device):
    if impl == "triton" and size > 256:
        pytest.skip("the reference's")
    pcm, window = torch.randn(2, 9 * hop + size, device=device), torch.hann_window(size, device=device)
    found = torch.cat(ak.istft(spectra(pcm, window, hop), window, hop, impl=impl), 1)
    whole = slice(size - hop, found.shape[1] - (size - hop))  # where all frames are there
    # Rounding of a few hundred products at most, of samples whose largest is about 4.
    assert_within(found[:, whole], pcm[:, : found.shape[1]][:, whole], 2e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_ends_are_divided_as_the_middle_is(impl, device):
    """By its formula, frame by frame in float64."""
    size, hop, frames = 12, 5, 3
    spectrum, window = torch.randn(1, frames, 7, 2, device=device), torch.rand(size, device=device) + 0.5
    found = torch.cat(ak.istft(spectrum, window, hop, impl=impl), 1)
    expected = torch.zeros(frames * hop + size - hop, dtype=torch.float64, device=device)
    bins, w = torch.view_as_complex(spectrum.double()), window.double()
    for f in range(frames):
        expected[f * hop : f * hop + size] += torch.fft.irfft(bins[0, f], size) * w
    squares = torch.stack([w[r::hop].square().sum() for r in range(hop)])
    expected /= squares.repeat(frames + 2)[: len(expected)]
    assert_within(found[0], expected, 1e-6 * expected.abs().max())


@pytest.mark.parametrize("impl", IMPLS)
def test_chunks_give_the_whole(impl, device):
    spectrum, window = torch.randn(2, 11, 17, 2, device=device), torch.hann_window(32, device=device)
    state, found = torch.zeros(2, 24, device=device), []
    for chunk in spectrum.split((1, 0, 2, 8), 1):
        pcm, state = ak.istft(chunk, window, 8, state, impl=impl)
        assert pcm.shape == (2, 8 * chunk.shape[1])
        found.append(pcm)
    pcm, tail = ak.istft(spectrum, window, 8, impl=impl)
    assert_within(torch.cat((*found, state), 1), torch.cat((pcm, tail), 1), 1e-6)


@pytest.mark.parametrize("impl", IMPLS)
def test_nan_stays_in_its_frame_and_imaginary_parts_of_the_ends_count_as_0(impl, device):
    spectrum, window = torch.randn(1, 6, 5, 2, device=device), torch.ones(8, device=device)
    clean = torch.cat(ak.istft(spectrum, window, 4, impl=impl), 1)
    spectrum[0, :, 0, 1] = spectrum[0, :, -1, 1] = 9.0
    assert torch.equal(torch.cat(ak.istft(spectrum, window, 4, impl=impl), 1), clean)
    spectrum[0, 2, 1, 0] = float("nan")
    found = torch.cat(ak.istft(spectrum, window, 4, impl=impl), 1).isfinite()
    assert not found[0, 8:16].all()
    assert found[0, :8].all()
    assert found[0, 16:].all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(1, 2, 5), torch.ones(8), 2), r"spectrum \(1, 2, 5\), window \(8,\) do not fit"),
        ((torch.ones(1, 2, 5, 2), torch.ones(9), 2), r"window \(9,\) do not fit"),
        ((torch.ones(1, 2, 5, 2), torch.ones(8), 9), "hop is 9, expected 1 to the window's 8"),
        ((torch.ones(1, 2, 5, 2), torch.ones(8), 0), "hop is 0"),
        ((torch.ones(1, 2, 5, 2), torch.ones(8).double(), 2), "window is torch.float64, expected torch.float32"),
        ((torch.ones(1, 2, 5, 2), torch.zeros(8), 2), "8 samples every 2 add up to 0 somewhere"),
        ((torch.ones(1, 2, 5, 2), torch.ones(8), 2, torch.ones(1, 5)), r"state is torch.float32 \[1, 5\], expected"),
        ((torch.ones(1, 2, 5, 2).cfloat(), torch.ones(8), 2), "expected a floating dtype"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        ak.istft(*arguments)


def test_a_long_window_is_the_references():
    with pytest.raises(ValueError, match="a window of 512 samples is above 256"):
        ak.istft(torch.ones(1, 2, 257, 2), torch.ones(512), 128, impl="triton")
