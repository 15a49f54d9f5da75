"""From many updates to one, the same bits on every machine: geometry, then a combination, block by block.

`aggregate` is the way in. A rule (`rules/`, one a file) looks at exact inner products and at what is known of each
update, and says how a block of the result is made of blocks of theirs; pre-steps (`before/`) mix the updates first; a
server step (`server/`) turns their common change into the model's. Adding one is adding a file.

What may decide a bit: unfused IEEE + - x /, square roots and comparisons of single elements, in the updates' order, and
whole numbers. No BLAS, no exp or log, no sum whose order a library chooses; a matrix product of whole numbers is exact
in any order. Hence neither threads, block sizes, kernels nor the order of arrival change a result.

Blocks are arrays of any library that speaks the array API (`arrays`): numpy's here, torch's on the engine's device. The
geometry is numpy's alone.
"""
