"""Threads and sockets of one node; the only package that uses zmq. Loads nothing by itself: the proxy is to be had without torch."""
