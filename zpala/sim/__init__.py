"""The state machines of ``gossip`` on a virtual network with a virtual clock: the classes that a node runs, without sockets or threads.

``clock`` orders the calls, ``network`` loses, delays and cuts, ``learner`` stands for a training loop, ``node`` for the process around
a ``Protocol``, ``cluster`` joins them, ``ledger`` says what must hold after every event, ``patience`` how long a gate may wait for whom,
``faults`` draws what goes wrong, and ``simulation`` plays one seed. Everything that happens follows from the seed.
"""
