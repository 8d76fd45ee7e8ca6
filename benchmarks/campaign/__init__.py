"""The fault campaign of the chunk memory: random calls, faults and crashes, and an oracle that knows every byte."""
