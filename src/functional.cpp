// attzoo::compiled: what functions ask of their tensors, mask tensors, rotary positions and linear
// attention.

#include <attzoo/core/autograd.ipp>
#include <attzoo/core/checks.ipp>
#include <attzoo/core/cpu/runtime.ipp>
#include <attzoo/core/cpu/scan.ipp>
#include <attzoo/core/documents.ipp>
#include <attzoo/core/layers/rotate.ipp>
#include <attzoo/core/recurrence/linear_attention.ipp>
#include <attzoo/core/recurrence/plain.ipp>
#include <attzoo/core/unchanged.ipp>
#include <attzoo/core/views.ipp>
#include <attzoo/functional/linear_attention.ipp>
#include <attzoo/functional/mask_tensors.ipp>
#include <attzoo/functional/rope.ipp>
