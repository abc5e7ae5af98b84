"""Run every operation once on small arrays, for compute-sanitizer to watch, and say so at the end."""

from gpuconv.measure.calls import Calls

from .cases import small_cases

END = "every operation ran"


def main() -> None:
    import cupy

    cupy.cuda.set_allocator(None)  # each array an allocation of its own: what lies outside it is nobody's
    for case in small_cases():
        with case.settings():
            Calls(case.op, case.shape, case.dtype, case.channels_last, cupy).ours()
    cupy.cuda.runtime.deviceSynchronize()
    print(END)


if __name__ == "__main__":
    main()
