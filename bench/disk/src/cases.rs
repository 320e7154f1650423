//! What is measured: workloads, block sizes and depths.

use kapok_lab::disk::Workload;

/// One column of a table.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) group: &'static str,
    pub(crate) workload: Workload,
    pub(crate) block: usize,
    pub(crate) depth: usize,
}

impl Case {
    pub(crate) fn name(&self) -> String {
        format!("{} ×{}", self.group, self.depth)
    }
}

/// Name, workload and block size of each table.
pub(crate) const GROUPS: [(&str, Workload, usize); 7] = [
    ("cold read", Workload::RandRead, 4096),
    ("cold write", Workload::RandWrite, 4096),
    ("warm read", Workload::CachedRead, 4096),
    ("sequential read", Workload::SeqRead, 128 << 10),
    ("write and fdatasync", Workload::Fsync, 4096),
    ("write of O_DSYNC", Workload::Dsync, 4096),
    ("nop", Workload::Nop, 512),
];

/// How many operations are in flight.
pub(crate) const DEPTHS: [usize; 3] = [1, 32, 128];

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    let case =
        |(group, workload, block)| DEPTHS.map(|depth| Case { group, workload, block, depth });
    GROUPS.into_iter().flat_map(case).collect()
}
