//! What the node has: endpoints, addresses, links and the store that outlives
//! the agent; and the plan that turns them into the snapshot of the lanes.
