"""The gossip protocol as pure state machines: messages in, actions out. Never a socket, a thread, a clock or a tensor library."""
