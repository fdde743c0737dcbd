//! Residency against the plainest model there is: one entry a page.

use defrost_pager::residency::Residency;
use pages::{PageAddr, PageRange};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Op {
    Settle(u64, u64),
    Remove(u64, u64),
    Unmap(u64, u64),
    Remap(u64, u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let run = || (0_u64..120, 1_u64..20);
    prop_oneof![
        run().prop_map(|(a, n)| Op::Settle(a, n)),
        run().prop_map(|(a, n)| Op::Remove(a, n)),
        run().prop_map(|(a, n)| Op::Unmap(a, n)),
        (run(), 200_u64..260).prop_map(|((a, n), to)| Op::Remap(a, n, to)),
        (200_u64..250, 1_u64..20, 0_u64..60).prop_map(|(a, n, to)| Op::Remap(a, n, to)),
    ]
}

fn range(start: u64, pages: u64) -> PageRange {
    PageRange::with_len(PageAddr::from_number(start), pages).expect("small numbers fit")
}

proptest! {
    #[test]
    fn does_what_a_page_table_would(ops in proptest::collection::vec(op(), 0..40)) {
        let mut real = Residency::new([range(10, 40), range(60, 40)], [range(12, 20), range(70, 30)]);
        // Where each view page comes from, and whether it is owed.
        let mut views: BTreeMap<u64, u64> = (10..50).chain(60..100).map(|n| (n, n)).collect();
        let mut owed: std::collections::BTreeSet<u64> = (12..32).chain(70..100).collect();
        for op in ops {
            match op {
                Op::Settle(a, n) => {
                    real.settle(PageAddr::from_number(a), n);
                    (a..a + n).for_each(|page| { owed.remove(&page); });
                }
                Op::Remove(a, n) => {
                    real.remove(range(a, n));
                    (a..a + n).filter_map(|at| views.get(&at)).for_each(|origin| { owed.remove(origin); });
                }
                Op::Unmap(a, n) => {
                    real.unmap(range(a, n));
                    (a..a + n).filter_map(|at| views.remove(&at)).for_each(|origin| { owed.remove(&origin); });
                }
                Op::Remap(a, n, to) => {
                    real.remap(range(a, n), PageAddr::from_number(to));
                    let moved: Vec<_> = (0..n).filter_map(|i| views.remove(&(a + i)).map(|origin| (to + i, origin))).collect();
                    (to..to + n).filter_map(|at| views.remove(&at)).for_each(|origin| { owed.remove(&origin); });
                    views.extend(moved);
                }
            }
            for at in 0..300 {
                let expected = views.get(&at).filter(|origin| owed.contains(origin)).map(|n| PageAddr::from_number(*n));
                prop_assert_eq!(real.owed_at(PageAddr::from_number(at)), expected, "page {}", at);
            }
            prop_assert_eq!(real.owed_pages(), owed.len() as u64);
            let runs: u64 = real.owed_runs(range(0, 300)).iter().map(|run| run.pages).sum();
            prop_assert_eq!(runs, owed.len() as u64);
        }
    }
}
