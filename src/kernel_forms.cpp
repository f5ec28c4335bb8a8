// Masks and changes of scores: the named forms, compositions, and which instruction set runs.

#include <attzoo/kernel/isa/isa.ipp>
#include <attzoo/kernel/modifier/make_modifier.hpp>
#include <attzoo/kernel/modifier/mask_forms.hpp>
#include <attzoo/kernel/modifier/modifier.ipp>
#include <attzoo/kernel/modifier/score_forms.hpp>

namespace attzoo::kernel {

#define ATTZOO_NAMED_MASK(F) template Mask make_mask(CallableMask<F>);
ATTZOO_NAMED_MASKS(ATTZOO_NAMED_MASK)
template Mask make_mask(Documents);
template Mask make_mask(GlobalTokens);
template Mask make_mask(DenseMask);
template Mask make_mask(Bands);
template Mask make_mask(ChosenBlocks);

template Score<float> chain(Score<float>, Score<float>);
template Score<float> make_score<float>(AlibiOfTensor<float>);
template Score<float> make_score<float>(Softcap);
template Score<float> make_score<float>(Bias<float>);
template Score<float> make_score<float>(DistanceBias<float>);
template Score<float> make_score<float>(Decay<float>);

template Score<double> chain(Score<double>, Score<double>);
template Score<double> make_score<double>(AlibiOfTensor<double>);
template Score<double> make_score<double>(Softcap);
template Score<double> make_score<double>(Bias<double>);
template Score<double> make_score<double>(DistanceBias<double>);
template Score<double> make_score<double>(Decay<double>);

}  // namespace attzoo::kernel
