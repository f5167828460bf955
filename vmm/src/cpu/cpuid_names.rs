//! The CPUID registers whose bits are features, with the names people know them by (as in `/proc/cpuinfo`).

/// A register full of feature bits.
#[derive(Debug)]
pub struct Register {
    /// EAX on entry.
    pub function: u32,
    /// ECX on entry.
    pub index: u32,
    /// 0 to 3: EAX to EDX.
    pub register: usize,
    names: &'static [(u32, &'static str)],
}

const fn register(
    function: u32,
    index: u32,
    register: usize,
    names: &'static [(u32, &'static str)],
) -> Register {
    Register { function, index, register, names }
}

/// All of them. Bits that the topology or the hypervisor sets (HTT) are compared too: every host sets them.
pub const FEATURE_REGISTERS: &[Register] = &[
    register(
        0x1,
        0,
        2,
        &[
            (0, "sse3"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (17, "pcid"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc_deadline_timer"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    ),
    register(0x1, 0, 3, &[(0, "fpu"), (4, "tsc"), (19, "clflush"), (25, "sse"), (26, "sse2"), (28, "ht")]),
    register(
        0x7,
        0,
        1,
        &[
            (0, "fsgsbase"),
            (1, "tsc_adjust"),
            (3, "bmi1"),
            (4, "hle"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (11, "rtm"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    register(
        0x7,
        0,
        2,
        &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512_vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (14, "avx512_vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
            (24, "bus_lock_detect"),
            (27, "movdiri"),
            (28, "movdir64b"),
        ],
    ),
    register(
        0x7,
        0,
        3,
        &[
            (4, "fsrm"),
            (8, "avx512_vp2intersect"),
            (10, "md_clear"),
            (14, "serialize"),
            (23, "avx512_fp16"),
            (26, "spec_ctrl"),
            (27, "intel_stibp"),
            (28, "flush_l1d"),
            (29, "arch_capabilities"),
            (31, "spec_ctrl_ssbd"),
        ],
    ),
    register(0x7, 1, 0, &[(4, "avx_vnni"), (5, "avx512_bf16")]),
    register(0xd, 0, 0, &[(2, "xsave avx"), (5, "xsave avx512"), (9, "xsave pkru")]),
    register(0xd, 0, 3, &[]),
    register(0xd, 1, 0, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")]),
    register(
        0x4000_0001,
        0,
        0,
        &[(0, "kvmclock"), (3, "kvmclock2"), (5, "kvm steal time"), (7, "kvm pv unhalt")],
    ),
    register(
        0x8000_0001,
        0,
        2,
        &[
            (0, "lahf_lm"),
            (5, "abm"),
            (6, "sse4a"),
            (8, "3dnowprefetch"),
            (11, "xop"),
            (16, "fma4"),
            (22, "topoext"),
        ],
    ),
    register(
        0x8000_0001,
        0,
        3,
        &[(11, "syscall"), (20, "nx"), (25, "fxsr_opt"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm")],
    ),
    register(0x8000_0007, 0, 3, &[(8, "constant_tsc")]),
    register(
        0x8000_0008,
        0,
        1,
        &[
            (0, "clzero"),
            (2, "xsaveerptr"),
            (9, "wbnoinvd"),
            (12, "ibpb"),
            (14, "ibrs"),
            (15, "stibp"),
            (24, "ssbd"),
        ],
    ),
    register(0x8000_0021, 0, 0, &[]),
];

/// A person's name for a bit.
#[must_use]
pub fn name(register: &Register, bit: u32) -> String {
    let known = register.names.iter().find(|(number, _)| *number == bit);
    match known {
        Some((_, name)) => (*name).to_owned(),
        None => {
            let letter = ["EAX", "EBX", "ECX", "EDX"].get(register.register).copied().unwrap_or("?");
            format!("CPUID {:#x}.{} {letter} bit {bit}", register.function, register.index)
        }
    }
}
