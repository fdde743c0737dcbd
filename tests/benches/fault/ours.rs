//! Our side: the victim restored from a store, its pager and the page server placed.

use crate::turn::{Order, Placement, Touches};
use anyhow::Result;
use defrost_tests::live_pager::{gone, pager_of};
use defrost_tests::placement::{everywhere, place, place_me};
use defrost_tests::{Server, Victim, restore_with};

/// Restore, place, let it touch.
pub fn touch(
    victim: &mut Victim,
    store: &str,
    background: bool,
    placement: Placement,
    server: &Server,
    how: &[&str],
    order: Order,
) -> Result<Touches> {
    // What one turn touched must not help the next.
    let cold = ["--no-replay", "--record", "off", "--no-background"];
    let before = everywhere()?;
    place_me(&placement.answering()?)?; // a pager sees at its start which processors it has
    let restored = restore_with(victim, "cold", store, &[&cold[..cold.len() - usize::from(background)], how].concat());
    place_me(&before)?;
    restored?;
    let pager = pager_of(victim.pid())?;
    place(victim.pid(), &placement.program()?)?;
    place(server.pid(), &placement.answering()?)?;
    let touches = order.given_to(victim)?;
    victim.end()?;
    gone(pager)?;
    Ok(touches)
}
