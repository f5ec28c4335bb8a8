// attzoo::compiled: what functions ask of their tensors, mask tensors and rotary positions.

#include <attzoo/core/checks.ipp>
#include <attzoo/core/documents.ipp>
#include <attzoo/core/storage.ipp>
#include <attzoo/core/unchanged.ipp>
#include <attzoo/functional/mask_tensors.ipp>
#include <attzoo/functional/rope.ipp>
