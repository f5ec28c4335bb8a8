#pragma once
// WordPiece, the tokenizer of uncased BERT models (Devlin et al., 2018, arXiv:1810.04805; Wu et
// al., 2016, arXiv:1609.08144): text is cleaned, put in lower case without accents, split at spaces
// and punctuation, and each word into the longest pieces of the vocabulary. UTF-8 in, numbers out.
//
// Lower case and accents are known for Latin, Greek, Cyrillic, kana and Hangul; letters and marks
// of other scripts stay as they are.

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace wordpiece {

/// The code points of UTF-8 text; U+FFFD, which is dropped later, for what is none.
inline std::u32string decode(std::string_view text) {
  std::u32string points;
  for (size_t i = 0; i < text.size();) {
    const auto first = static_cast<unsigned char>(text[i++]);
    const int more = first < 0x80   ? 0
                     : first < 0xC2 ? -1
                     : first < 0xE0 ? 1
                     : first < 0xF0 ? 2
                     : first < 0xF5 ? 3
                                    : -1;
    char32_t point = more <= 0 ? first : first & (0x3FU >> more);
    int left = std::max(more, 0);
    for (; left > 0 && i < text.size(); --left) {
      const auto next = static_cast<unsigned char>(text[i]);
      if ((next & 0xC0) != 0x80) break;
      point = point << 6 | (next & 0x3FU);
      ++i;
    }
    points += more < 0 || left > 0 ? U'\uFFFD' : point;
  }
  return points;
}

inline std::string encode(char32_t c) {
  const auto byte = [](char32_t bits) { return static_cast<char>(bits); };
  const auto tail = [&](int shift) { return byte(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xC0 | c >> 6), tail(0)};
  if (c < 0x10000) return {byte(0xE0 | c >> 12), tail(6), tail(0)};
  return {byte(0xF0 | c >> 18), tail(12), tail(6), tail(0)};
}

template <size_t N>
bool lies_in(const std::pair<char32_t, char32_t> (&ranges)[N], char32_t c) {
  return std::any_of(std::begin(ranges), std::end(ranges),
                     [&](const auto& r) { return r.first <= c && c <= r.second; });
}

inline bool is_space(char32_t c) {
  static constexpr std::pair<char32_t, char32_t> kRanges[] = {
      {9, 10},          {13, 13},         {32, 32},         {0xA0, 0xA0},     {0x1680, 0x1680},
      {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}};
  return lies_in(kRanges, c);
}

/// Control and format characters, and private ones.
inline bool is_dropped(char32_t c) {
  static constexpr std::pair<char32_t, char32_t> kRanges[] = {
      {0, 8},           {11, 12},         {14, 31},           {0x7F, 0x9F},
      {0xAD, 0xAD},     {0x600, 0x605},   {0x61C, 0x61C},     {0x6DD, 0x6DD},
      {0x70F, 0x70F},   {0x180E, 0x180E}, {0x200B, 0x200F},   {0x202A, 0x202E},
      {0x2060, 0x2064}, {0x2066, 0x206F}, {0xD800, 0xF8FF},   {0xFEFF, 0xFEFF},
      {0xFFF0, 0xFFFB}, {0xFFFD, 0xFFFF}, {0xE0001, 0xE007F}, {0xF0000, 0x10FFFF}};
  return lies_in(kRanges, c);
}

inline bool is_cjk(char32_t c) {
  static constexpr std::pair<char32_t, char32_t> kRanges[] = {
      {0x3400, 0x4DBF},   {0x4E00, 0x9FFF},   {0xF900, 0xFAFF},
      {0x20000, 0x2A6DF}, {0x2A700, 0x2CEAF}, {0x2F800, 0x2FA1F}};
  return lies_in(kRanges, c);
}

/// All of Unicode below U+10000, and the signs of ASCII that are no letters, as $ and +.
inline bool is_punctuation(char32_t c) {
  static constexpr std::pair<char32_t, char32_t> kRanges[] = {
      {0x21, 0x2F},     {0x3A, 0x40},     {0x5B, 0x60},     {0x7B, 0x7E},     {0xA1, 0xA1},
      {0xA7, 0xA7},     {0xAB, 0xAB},     {0xB6, 0xB7},     {0xBB, 0xBB},     {0xBF, 0xBF},
      {0x37E, 0x37E},   {0x387, 0x387},   {0x55A, 0x55F},   {0x589, 0x58A},   {0x5BE, 0x5BE},
      {0x5C0, 0x5C0},   {0x5C3, 0x5C3},   {0x5C6, 0x5C6},   {0x5F3, 0x5F4},   {0x609, 0x60A},
      {0x60C, 0x60D},   {0x61B, 0x61B},   {0x61D, 0x61F},   {0x66A, 0x66D},   {0x6D4, 0x6D4},
      {0x700, 0x70D},   {0x7F7, 0x7F9},   {0x830, 0x83E},   {0x85E, 0x85E},   {0x964, 0x965},
      {0x970, 0x970},   {0x9FD, 0x9FD},   {0xA76, 0xA76},   {0xAF0, 0xAF0},   {0xC77, 0xC77},
      {0xC84, 0xC84},   {0xDF4, 0xDF4},   {0xE4F, 0xE4F},   {0xE5A, 0xE5B},   {0xF04, 0xF12},
      {0xF14, 0xF14},   {0xF3A, 0xF3D},   {0xF85, 0xF85},   {0xFD0, 0xFD4},   {0xFD9, 0xFDA},
      {0x104A, 0x104F}, {0x10FB, 0x10FB}, {0x1360, 0x1368}, {0x1400, 0x1400}, {0x166E, 0x166E},
      {0x169B, 0x169C}, {0x16EB, 0x16ED}, {0x1735, 0x1736}, {0x17D4, 0x17D6}, {0x17D8, 0x17DA},
      {0x1800, 0x180A}, {0x1944, 0x1945}, {0x1A1E, 0x1A1F}, {0x1AA0, 0x1AA6}, {0x1AA8, 0x1AAD},
      {0x1B5A, 0x1B60}, {0x1B7D, 0x1B7E}, {0x1BFC, 0x1BFF}, {0x1C3B, 0x1C3F}, {0x1C7E, 0x1C7F},
      {0x1CC0, 0x1CC7}, {0x1CD3, 0x1CD3}, {0x2010, 0x2027}, {0x2030, 0x2043}, {0x2045, 0x2051},
      {0x2053, 0x205E}, {0x207D, 0x207E}, {0x208D, 0x208E}, {0x2308, 0x230B}, {0x2329, 0x232A},
      {0x2768, 0x2775}, {0x27C5, 0x27C6}, {0x27E6, 0x27EF}, {0x2983, 0x2998}, {0x29D8, 0x29DB},
      {0x29FC, 0x29FD}, {0x2CF9, 0x2CFC}, {0x2CFE, 0x2CFF}, {0x2D70, 0x2D70}, {0x2E00, 0x2E2E},
      {0x2E30, 0x2E4F}, {0x2E52, 0x2E5D}, {0x3001, 0x3003}, {0x3008, 0x3011}, {0x3014, 0x301F},
      {0x3030, 0x3030}, {0x303D, 0x303D}, {0x30A0, 0x30A0}, {0x30FB, 0x30FB}, {0xA4FE, 0xA4FF},
      {0xA60D, 0xA60F}, {0xA673, 0xA673}, {0xA67E, 0xA67E}, {0xA6F2, 0xA6F7}, {0xA874, 0xA877},
      {0xA8CE, 0xA8CF}, {0xA8F8, 0xA8FA}, {0xA8FC, 0xA8FC}, {0xA92E, 0xA92F}, {0xA95F, 0xA95F},
      {0xA9C1, 0xA9CD}, {0xA9DE, 0xA9DF}, {0xAA5C, 0xAA5F}, {0xAADE, 0xAADF}, {0xAAF0, 0xAAF1},
      {0xABEB, 0xABEB}, {0xFD3E, 0xFD3F}, {0xFE10, 0xFE19}, {0xFE30, 0xFE52}, {0xFE54, 0xFE61},
      {0xFE63, 0xFE63}, {0xFE68, 0xFE68}, {0xFE6A, 0xFE6B}, {0xFF01, 0xFF03}, {0xFF05, 0xFF0A},
      {0xFF0C, 0xFF0F}, {0xFF1A, 0xFF1B}, {0xFF1F, 0xFF20}, {0xFF3B, 0xFF3D}, {0xFF3F, 0xFF3F},
      {0xFF5B, 0xFF5B}, {0xFF5D, 0xFF5D}, {0xFF5F, 0xFF65}};
  return lies_in(kRanges, c);
}

/// A combining mark of those scripts that are known here.
inline bool is_accent(char32_t c) {
  static constexpr std::pair<char32_t, char32_t> kRanges[] = {
      {0x300, 0x36F},   {0x483, 0x487},   {0x1AB0, 0x1ABD}, {0x1DC0, 0x1DFF},
      {0x20D0, 0x20DC}, {0x302A, 0x302D}, {0x3099, 0x309A}, {0xFE20, 0xFE2F}};
  return lies_in(kRanges, c);
}

/// A letter, and what becomes it without case and accents.
struct Folded {
  char32_t base;
  std::u32string_view from;
};
// clang-format off
inline constexpr Folded kFolded[] = {
    {U';', U";"}, {U'`', U"`"},
    {U'a', U"ÀÁÂÃÄÅàáâãäåĀāĂăĄąǍǎǞǟǠǡǺǻȀȁȂȃȦȧḀḁẠạẢảẤấẦầẨẩẪẫẬậẮắẰằẲẳẴẵẶặ"}, {U'b', U"ḂḃḄḅḆḇ"},
    {U'c', U"ÇçĆćĈĉĊċČčḈḉ"}, {U'd', U"ĎďḊḋḌḍḎḏḐḑḒḓ"},
    {U'e', U"ÈÉÊËèéêëĒēĔĕĖėĘęĚěȄȅȆȇȨȩḔḕḖḗḘḙḚḛḜḝẸẹẺẻẼẽẾếỀềỂểỄễỆệ"}, {U'f', U"Ḟḟ"},
    {U'g', U"ĜĝĞğĠġĢģǦǧǴǵḠḡ"}, {U'h', U"ĤĥȞȟḢḣḤḥḦḧḨḩḪḫẖ"},
    {U'i', U"ÌÍÎÏìíîïĨĩĪīĬĭĮįİǏǐȈȉȊȋḬḭḮḯỈỉỊị"}, {U'j', U"Ĵĵǰ"}, {U'k', U"ĶķǨǩḰḱḲḳḴḵ"},
    {U'l', U"ĹĺĻļĽľḶḷḸḹḺḻḼḽ"}, {U'm', U"ḾḿṀṁṂṃ"}, {U'n', U"ÑñŃńŅņŇňǸǹṄṅṆṇṈṉṊṋ"},
    {U'o', U"ÒÓÔÕÖòóôõöŌōŎŏŐőƠơǑǒǪǫǬǭȌȍȎȏȪȫȬȭȮȯȰȱṌṍṎṏṐṑṒṓỌọỎỏỐốỒồỔổỖỗỘộỚớỜờỞởỠỡỢợ"},
    {U'p', U"ṔṕṖṗ"}, {U'r', U"ŔŕŖŗŘřȐȑȒȓṘṙṚṛṜṝṞṟ"}, {U's', U"ŚśŜŝŞşŠšȘșṠṡṢṣṤṥṦṧṨṩ"},
    {U't', U"ŢţŤťȚțṪṫṬṭṮṯṰṱẗ"},
    {U'u', U"ÙÚÛÜùúûüŨũŪūŬŭŮůŰűŲųƯưǓǔǕǖǗǘǙǚǛǜȔȕȖȗṲṳṴṵṶṷṸṹṺṻỤụỦủỨứỪừỬửỮữỰự"}, {U'v', U"ṼṽṾṿ"},
    {U'w', U"ŴŵẀẁẂẃẄẅẆẇẈẉẘ"}, {U'x', U"ẊẋẌẍ"}, {U'y', U"ÝýÿŶŷŸȲȳẎẏẙỲỳỴỵỶỷỸỹ"},
    {U'z', U"ŹźŻżŽžẐẑẒẓẔẕ"}, {U'¨', U"΅῁῭΅"}, {U'´', U"´"}, {U'·', U"·"}, {U'ß', U"ẞ"},
    {U'æ', U"ǢǣǼǽ"}, {U'ø', U"Ǿǿ"}, {U'đ', U"Đ"}, {U'ħ', U"Ħ"}, {U'ĳ', U"Ĳ"}, {U'ŀ', U"Ŀ"},
    {U'ł', U"Ł"}, {U'ŋ', U"Ŋ"}, {U'œ', U"Œ"}, {U'ŧ', U"Ŧ"}, {U'ſ', U"ẛ"}, {U'ƀ', U"Ƀ"},
    {U'ƃ', U"Ƃ"}, {U'ƅ', U"Ƅ"}, {U'ƈ', U"Ƈ"}, {U'ƌ', U"Ƌ"}, {U'ƒ', U"Ƒ"}, {U'ƕ', U"Ƕ"},
    {U'ƙ', U"Ƙ"}, {U'ƚ', U"Ƚ"}, {U'ƞ', U"Ƞ"}, {U'ƣ', U"Ƣ"}, {U'ƥ', U"Ƥ"}, {U'ƨ', U"Ƨ"},
    {U'ƭ', U"Ƭ"}, {U'ƴ', U"Ƴ"}, {U'ƶ', U"Ƶ"}, {U'ƹ', U"Ƹ"}, {U'ƽ', U"Ƽ"}, {U'ƿ', U"Ƿ"},
    {U'ǆ', U"Ǆǅ"}, {U'ǉ', U"Ǉǈ"}, {U'ǌ', U"Ǌǋ"}, {U'ǝ', U"Ǝ"}, {U'ǥ', U"Ǥ"}, {U'ǳ', U"Ǳǲ"},
    {U'ȝ', U"Ȝ"}, {U'ȣ', U"Ȣ"}, {U'ȥ', U"Ȥ"}, {U'ȼ', U"Ȼ"}, {U'ɂ', U"Ɂ"}, {U'ɇ', U"Ɇ"},
    {U'ɉ', U"Ɉ"}, {U'ɋ', U"Ɋ"}, {U'ɍ', U"Ɍ"}, {U'ɏ', U"Ɏ"}, {U'ɓ', U"Ɓ"}, {U'ɔ', U"Ɔ"},
    {U'ɖ', U"Ɖ"}, {U'ɗ', U"Ɗ"}, {U'ə', U"Ə"}, {U'ɛ', U"Ɛ"}, {U'ɠ', U"Ɠ"}, {U'ɣ', U"Ɣ"},
    {U'ɨ', U"Ɨ"}, {U'ɩ', U"Ɩ"}, {U'ɯ', U"Ɯ"}, {U'ɲ', U"Ɲ"}, {U'ɵ', U"Ɵ"}, {U'ʀ', U"Ʀ"},
    {U'ʃ', U"Ʃ"}, {U'ʈ', U"Ʈ"}, {U'ʉ', U"Ʉ"}, {U'ʊ', U"Ʊ"}, {U'ʋ', U"Ʋ"}, {U'ʌ', U"Ʌ"},
    {U'ʒ', U"ƷǮǯ"}, {U'ʹ', U"ʹ"}, {U'ͱ', U"Ͱ"}, {U'ͳ', U"Ͳ"}, {U'ͷ', U"Ͷ"}, {U'ͻ', U"Ͻ"},
    {U'ͼ', U"Ͼ"}, {U'ͽ', U"Ͽ"}, {U'α', U"ΆάἀἁἂἃἄἅἆἇἈἉἊἋἌἍἎἏὰάᾀᾁᾂᾃᾄᾅᾆᾇᾈᾉᾊᾋᾌᾍᾎᾏᾰᾱᾲᾳᾴᾶᾷᾸᾹᾺΆᾼ"},
    {U'ε', U"ΈέἐἑἒἓἔἕἘἙἚἛἜἝὲέῈΈ"}, {U'η', U"ΉήἠἡἢἣἤἥἦἧἨἩἪἫἬἭἮἯὴήᾐᾑᾒᾓᾔᾕᾖᾗᾘᾙᾚᾛᾜᾝᾞᾟῂῃῄῆῇῊΉῌ"},
    {U'θ', U"ϴ"}, {U'ι', U"ΊΐΪίϊἰἱἲἳἴἵἶἷἸἹἺἻἼἽἾἿὶίιῐῑῒΐῖῗῘῙῚΊ"}, {U'ο', U"ΌόὀὁὂὃὄὅὈὉὊὋὌὍὸόῸΌ"},
    {U'ρ', U"ῤῥῬ"}, {U'υ', U"ΎΫΰϋύὐὑὒὓὔὕὖὗὙὛὝὟὺύῠῡῢΰῦῧῨῩῪΎ"},
    {U'ω', U"ΏώὠὡὢὣὤὥὦὧὨὩὪὫὬὭὮὯὼώᾠᾡᾢᾣᾤᾥᾦᾧᾨᾩᾪᾫᾬᾭᾮᾯῲῳῴῶῷῺΏῼ"}, {U'ϒ', U"ϓϔ"}, {U'ϗ', U"Ϗ"},
    {U'ϙ', U"Ϙ"}, {U'ϛ', U"Ϛ"}, {U'ϝ', U"Ϝ"}, {U'ϟ', U"Ϟ"}, {U'ϡ', U"Ϡ"}, {U'ϣ', U"Ϣ"},
    {U'ϥ', U"Ϥ"}, {U'ϧ', U"Ϧ"}, {U'ϩ', U"Ϩ"}, {U'ϫ', U"Ϫ"}, {U'ϭ', U"Ϭ"}, {U'ϯ', U"Ϯ"},
    {U'ϲ', U"Ϲ"}, {U'ϳ', U"Ϳ"}, {U'ϸ', U"Ϸ"}, {U'ϻ', U"Ϻ"}, {U'а', U"ӐӑӒӓ"}, {U'г', U"Ѓѓ"},
    {U'е', U"ЀЁѐёӖӗ"}, {U'ж', U"ӁӂӜӝ"}, {U'з', U"Ӟӟ"}, {U'и', U"ЍЙйѝӢӣӤӥ"}, {U'к', U"Ќќ"},
    {U'о', U"Ӧӧ"}, {U'у', U"ЎўӮӯӰӱӲӳ"}, {U'ч', U"Ӵӵ"}, {U'ы', U"Ӹӹ"}, {U'э', U"Ӭӭ"},
    {U'і', U"Її"}, {U'ѵ', U"Ѷѷ"}, {U'ӄ', U"Ӄ"}, {U'ӆ', U"Ӆ"}, {U'ӈ', U"Ӈ"}, {U'ӊ', U"Ӊ"},
    {U'ӌ', U"Ӌ"}, {U'ӎ', U"Ӎ"}, {U'ӏ', U"Ӏ"}, {U'ә', U"Ӛӛ"}, {U'ө', U"Ӫӫ"}, {U'ỻ', U"Ỻ"},
    {U'ỽ', U"Ỽ"}, {U'ỿ', U"Ỿ"}, {U'᾿', U"῍῎῏"}, {U'῾', U"῝῞῟"}, {U'ⱥ', U"Ⱥ"}, {U'ⱦ', U"Ⱦ"},
    {U'う', U"ゔ"}, {U'か', U"が"}, {U'き', U"ぎ"}, {U'く', U"ぐ"}, {U'け', U"げ"}, {U'こ', U"ご"},
    {U'さ', U"ざ"}, {U'し', U"じ"}, {U'す', U"ず"}, {U'せ', U"ぜ"}, {U'そ', U"ぞ"}, {U'た', U"だ"},
    {U'ち', U"ぢ"}, {U'つ', U"づ"}, {U'て', U"で"}, {U'と', U"ど"}, {U'は', U"ばぱ"}, {U'ひ', U"びぴ"},
    {U'ふ', U"ぶぷ"}, {U'へ', U"べぺ"}, {U'ほ', U"ぼぽ"}, {U'ゝ', U"ゞ"}, {U'ウ', U"ヴ"}, {U'カ', U"ガ"},
    {U'キ', U"ギ"}, {U'ク', U"グ"}, {U'ケ', U"ゲ"}, {U'コ', U"ゴ"}, {U'サ', U"ザ"}, {U'シ', U"ジ"},
    {U'ス', U"ズ"}, {U'セ', U"ゼ"}, {U'ソ', U"ゾ"}, {U'タ', U"ダ"}, {U'チ', U"ヂ"}, {U'ツ', U"ヅ"},
    {U'テ', U"デ"}, {U'ト', U"ド"}, {U'ハ', U"バパ"}, {U'ヒ', U"ビピ"}, {U'フ', U"ブプ"}, {U'ヘ', U"ベペ"},
    {U'ホ', U"ボポ"}, {U'ワ', U"ヷ"}, {U'ヰ', U"ヸ"}, {U'ヱ', U"ヹ"}, {U'ヲ', U"ヺ"}, {U'ヽ', U"ヾ"},
};
// clang-format on

/// Lower case without accents; Hangul syllables come apart, as they do when accents are taken away.
inline std::u32string fold(char32_t c) {
  if (c < 0x80) return {U'A' <= c && c <= U'Z' ? c + 32 : c};
  if (is_accent(c)) return {};
  if (0xAC00 <= c && c <= 0xD7A3) {
    const char32_t n = c - 0xAC00, last = n % 28;
    std::u32string jamo{0x1100 + n / 588, 0x1161 + n % 588 / 28};
    return last == 0 ? jamo : jamo + char32_t{0x11A7 + last};
  }
  static const auto* const kBases = [] {
    auto* bases = new std::unordered_map<char32_t, char32_t>;
    for (const auto& folded : kFolded) {
      for (const char32_t from : folded.from) bases->emplace(from, folded.base);
    }
    return bases;
  }();
  if (const auto it = kBases->find(c); it != kBases->end()) return {it->second};
  if ((0xC0 <= c && c <= 0xDE && c != 0xD7) || (0x391 <= c && c <= 0x3A9 && c != 0x3A2) ||
      (0x410 <= c && c <= 0x42F))
    return {c + 32};
  if (0x400 <= c && c <= 0x40F) return {c + 80};
  static constexpr std::pair<char32_t, char32_t> kCapitalFirst[] = {
      {0x460, 0x481},
      {0x48A, 0x4BF},
      {0x4D0, 0x52F}};  // Cyrillic, a capital and its letter in turn
  return {lies_in(kCapitalFirst, c) && c % 2 == 0 ? c + 1 : c};
}

/// The words of a text: without spaces, each mark of punctuation and each CJK character alone.
inline std::vector<std::u32string> split_words(std::string_view text) {
  std::vector<std::u32string> words(1);
  const auto end_word = [&] {
    if (!words.back().empty()) words.emplace_back();
  };
  for (const char32_t raw : decode(text)) {
    if (is_dropped(raw)) continue;
    const bool cjk = is_cjk(raw);
    if (is_space(raw) || cjk) end_word();
    if (is_space(raw)) continue;
    for (const char32_t c : fold(raw)) {
      if (is_punctuation(c)) end_word();
      words.back() += c;
      if (is_punctuation(c)) end_word();
    }
    if (cjk) end_word();
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

class Tokenizer {
 public:
  /// Reads a vocab.txt: a piece a line, pieces within a word begin with ##. Throws
  /// std::runtime_error if it is no regular file, cannot be read, or lacks [UNK], [CLS] or [SEP].
  explicit Tokenizer(const std::filesystem::path& vocabulary) {
    if (!std::filesystem::is_regular_file(vocabulary)) {  // a pipe waits, a device never ends
      throw std::runtime_error(vocabulary.string() + " is no regular file");
    }
    std::ifstream in(vocabulary, std::ios::binary);
    std::string line;
    for (int64_t id = 0; std::getline(in, line); ++id) {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      ids_.emplace(line, id);
    }
    for (auto [id, name] : {std::pair<int64_t*, const char*>{&unknown_, "[UNK]"},
                            {&begin_, "[CLS]"},
                            {&end_, "[SEP]"}}) {
      const auto it = ids_.find(name);
      if (it == ids_.end()) {
        throw std::runtime_error(vocabulary.string() + " is no vocabulary: it lacks " + name);
      }
      *id = it->second;
    }
  }

  /// [CLS], the pieces of the text, [SEP]; the pieces are cut so that there are at most `most`.
  std::vector<int64_t> encode(std::string_view text, size_t most = 256) const {
    std::vector<int64_t> ids{begin_};
    for (const auto& word : split_words(text)) add_pieces(word, ids);
    ids.resize(std::min(ids.size(), most - 1));
    ids.push_back(end_);
    return ids;
  }

 private:
  /// The longest piece at each place; a word that has none there is unknown as a whole.
  void add_pieces(const std::u32string& word, std::vector<int64_t>& ids) const {
    const size_t before = ids.size();
    constexpr size_t kLongest = 100;  // characters of a word
    for (size_t at = 0, end; at < word.size() && word.size() <= kLongest; at = end) {
      for (end = word.size(); end > at; --end) {
        const auto it = ids_.find(piece(word, at, end));
        if (it == ids_.end()) continue;
        ids.push_back(it->second);
        break;
      }
      if (end > at) continue;
      ids.resize(before);
      break;
    }
    if (ids.size() == before) ids.push_back(unknown_);
  }

  static std::string piece(const std::u32string& word, size_t at, size_t end) {
    std::string text = at > 0 ? "##" : "";
    for (size_t i = at; i < end; ++i) text += wordpiece::encode(word[i]);
    return text;
  }

  std::unordered_map<std::string, int64_t> ids_;
  int64_t unknown_ = 0, begin_ = 0, end_ = 0;
};

}  // namespace wordpiece
