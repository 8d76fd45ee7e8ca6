"""One world over several processes of a cluster: its ranks as actors of one placement group, and the job that has it.

rank: the actor; gang: one life of all ranks; keeping: what outlives them; job: from the first life to the video.
"""
