//! The echo, HTTP and chat servers on the simulated engine: thousands of seeds, each a network of
//! its own with faults of its own under virtual time.
//!
//! Clients know every byte that must come, in its order, and the number of replies. On a network
//! that is slow and tears everything into pieces, but breaks nothing, all of it must come; on one
//! that resets connections and refuses descriptors, what came must be the beginning of it. In the
//! end no fiber is left.
//!
//! A failure prints its seed; `KAPOK_SIM_SEED=seed cargo test -p kapok-lab --test simulation` runs
//! that one again, exactly as it was. `KAPOK_SCALE=full` runs ten times as many.

mod chat;
mod echo;
mod http;
mod replay;
mod world;
