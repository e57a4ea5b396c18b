"""Reading SASS: loops, what a step costs, and a last block's protocol."""

import pytest

from bench.sm90 import sass

LOOP = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;            /* 0x00000a0000017a02 */
                                                                     /* 0x003fde0000000f00 */
        /*0010*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8].tnspB, R24, gsb0 ;
        /*0020*/                   MUFU.EX2 R3, R3 ;
        /*0030*/              @!P0 LDGSTS.E.BYPASS.128 [R33], desc[UR6][R28.64] ;
        /*0040*/                   NOP ;
        /*0050*/               @P1 BRA 0x10 ;
        /*0060*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0070*/              @P2 BRA 0x60 ;
        /*0080*/                   EXIT ;
        /*0090*/                   BRA 0x90;
"""


def test_a_step_of_the_main_loop():
    code = sass.parse(LOOP)
    assert [one.op for one in code][:3] == ["MOV", "HGMMA.64x128x16.F32.BF16", "MUFU.EX2"]
    assert [len(part) for part in sass.loops(code)] == [5, 2]
    step = sass.cost(sass.main_loop(code), threads=256)
    # 4 instructions of 8 warps in 4 slots; 2 warpgroups of 2 x 64 x 128 x 16 in 4,096; 256 exponentials in 16.
    assert (step.instructions, step.issue_clk, step.tensor_clk, step.mufu_clk) == (4, 8, 128, 16)


def test_matrix_instructions():
    (one,) = sass.parse("/*0000*/ HMMA.16816.F32.BF16 R4, R8, R12, R4 ;")
    assert sass.flops(one) == (2 * 16 * 8 * 16, 32)
    (one,) = sass.parse("/*0000*/ HMMA.1688.F32.TF32 R4, R8, R12, R4 ;")
    assert sass.flops(one) == (2 * 16 * 8 * 8, 32)


def test_products_of_fp8_are_twice_as_fast_and_who_fetches_multiplies_nothing():
    code = sass.parse(
        LOOP.replace("HGMMA.64x128x16.F32.BF16", "QGMMA.64x128x32.F32.E4M3.E4M3").replace("LDGSTS", "LDS")
    )
    assert sass.cost(sass.main_loop(code), threads=256).tensor_clk == 128
    assert sass.working(code, 384) == 384
    apart = sass.parse("/*0008*/ UTMALDG.2D [UR8], [UR12] ;")
    assert sass.working([*apart, *code], 384) == 256
    assert sass.working(sass.parse(LOOP.replace("LDGSTS.E", "UTMALDG.2D")), 384) == 384


def test_a_program_without_a_loop_is_one_step():
    code = sass.parse("/*0000*/ MOV R1, R2 ;\n/*0010*/ EXIT ;\n/*0020*/ BRA 0x20;")
    assert sass.cost(sass.main_loop(code), 128).instructions == 2


ONE_ARRIVES = """
/*0000*/ STG.E desc[UR6][R8.64], R17 ;
/*0010*/ BAR.SYNC.DEFER_BLOCKING 0x0 ;
/*0020*/ @P0 BRA 0x70 ;
/*0030*/ STG.E desc[UR6][R10.64], R18 ;
/*0040*/ MEMBAR.ALL.GPU ;
/*0050*/ ATOMG.E.ADD.STRONG.GPU PT, R0, desc[UR6][R30.64+0x4], R13 ;
/*0060*/ CCTL.IVALL ;
/*0070*/ BAR.SYNC.DEFER_BLOCKING 0x0 ;
/*0080*/ @!P0 EXIT ;
/*0090*/ LDG.E.STRONG.GPU R25, desc[UR6][R24.64] ;
/*00a0*/ EXIT ;
"""
ALL_FENCE = """
/*0000*/ STG.E desc[UR6][R8.64], R17 ;
/*0010*/ MEMBAR.SC.GPU ;
/*0020*/ BAR.SYNC.DEFER_BLOCKING 0x0 ;
/*0030*/ @P0 BRA 0x50 ;
/*0040*/ ATOMG.E.ADD.STRONG.GPU PT, R0, desc[UR6][R30.64+0x4], R13 ;
/*0050*/ BAR.SYNC.DEFER_BLOCKING 0x0 ;
/*0060*/ LDGSTS.E.BYPASS.128 [R33], desc[UR6][R28.64] ;
/*0070*/ EXIT ;
"""


@pytest.mark.parametrize("text", [ONE_ARRIVES, ALL_FENCE])
def test_a_last_block_in_order(text):
    assert not sass.broken_arrivals(sass.parse(text))


@pytest.mark.parametrize(
    ("text", "gone", "said"),
    [
        (ONE_ARRIVES, "/*0010*/", "no barrier"),
        (ONE_ARRIVES, "/*0040*/", "no MEMBAR"),
        (ONE_ARRIVES, "/*0070*/", "no load past L1"),
        (ONE_ARRIVES, "/*0090*/", "no load past L1"),
        (ALL_FENCE, "/*0010*/", "no MEMBAR"),
        (ALL_FENCE, "/*0020*/", "no barrier"),
        (ALL_FENCE, "/*0050*/", "no load past L1"),
    ],
)
def test_a_last_block_out_of_order(text, gone, said):
    lines = [line.replace(line[9:], "NOP ;") if line.startswith(gone) else line for line in text.strip().splitlines()]
    (found, *_) = sass.broken_arrivals(sass.parse("\n".join(lines)))
    assert said in found[1]


def test_a_fence_of_the_block_alone_is_none():
    assert sass.broken_arrivals(sass.parse(ALL_FENCE.replace("MEMBAR.SC.GPU", "MEMBAR.ALL.CTA")))


def test_a_load_that_l1_may_answer_is_none():
    assert sass.broken_arrivals(sass.parse(ONE_ARRIVES.replace("LDG.E.STRONG.GPU", "LDG.E")))


TWO_LOOPS = """
/*0000*/ HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
/*0010*/ LDGSTS.E.BYPASS.128 [R33], desc[UR6][R28.64] ;
/*0020*/ FSEL R3, R3, -INF, P0 ;
/*0030*/ @P1 BRA 0x0 ;
/*0040*/ HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
/*0050*/ LDGSTS.E.BYPASS.128 [R33], desc[UR6][R28.64] ;
/*0060*/ @P1 BRA 0x40 ;
/*0070*/ HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
/*0080*/ @P1 BRA 0x70 ;
"""


def test_of_loops_with_equal_products_the_one_that_copies_and_masks_nothing():
    assert sass.main_loop(sass.parse(TWO_LOOPS))[0].address == 0x40


def test_products_that_a_branch_goes_past():
    part = sass.parse(
        "/*0000*/ @!P0 BRA 0x30 ;\n/*0010*/ FMUL R1, R1, R2 ;\n/*0020*/ FMUL R3, R3, R2 ;\n"
        "/*0030*/ @!P1 BRA 0x60 ;\n/*0040*/ FMUL R1, R1, R2 ;\n/*0050*/ STS [R1], R2 ;\n/*0060*/ @P2 BRA 0x0 ;"
    )
    assert sass.passed(part) == 2, "a store is not nearly always passed"


def test_a_warpgroup_that_fetches_has_no_part_in_the_loop():
    code = sass.parse(LOOP.replace("MOV R1, c[0x0][0x28]", "USETMAXREG.DEALLOC.CTAPOOL 0x18"))
    assert (sass.working(code, 384), sass.working(sass.parse(LOOP), 384)) == (256, 384)
