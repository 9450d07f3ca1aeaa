"""The methods and their catalogue. Written by `python -m tools.coverage` from the files beside it."""

from collections.abc import Mapping

from plures.methods.apfl import apfl as apfl
from plures.methods.apple import apple as apple
from plures.methods.cfl import cfl as cfl
from plures.methods.cold_start import cold_start as cold_start
from plures.methods.community import community as community
from plures.methods.dapper import dapper as dapper
from plures.methods.debias import debias as debias
from plures.methods.digital_twin import digital_twin as digital_twin
from plures.methods.ditto import ditto as ditto
from plures.methods.eefed import eefed as eefed
from plures.methods.energy import energy as energy
from plures.methods.entry import Entry as Entry
from plures.methods.ewc import ewc as ewc
from plures.methods.fedala import fedala as fedala
from plures.methods.fedamp import fedamp as fedamp
from plures.methods.fedavg import fedavg as fedavg
from plures.methods.fedavg_ft import fedavg_ft as fedavg_ft
from plures.methods.fedavgm import fedavgm as fedavgm
from plures.methods.fedbabu import fedbabu as fedbabu
from plures.methods.fedbn import fedbn as fedbn
from plures.methods.feddyn import feddyn as feddyn
from plures.methods.fedem import fedem as fedem
from plures.methods.fedfomo import fedfomo as fedfomo
from plures.methods.fedhome import fedhome as fedhome
from plures.methods.fedopt import fedopt as fedopt
from plures.methods.fedot import fedot as fedot
from plures.methods.fedper import fedper as fedper
from plures.methods.fedproto import fedproto as fedproto
from plures.methods.fedprox import fedprox as fedprox
from plures.methods.fedrep import fedrep as fedrep
from plures.methods.fedrod import fedrod as fedrod
from plures.methods.fedsimclr import fedsimclr as fedsimclr
from plures.methods.fedu import fedu as fedu
from plures.methods.gradient_clusters import gradient_clusters as gradient_clusters
from plures.methods.hierarchical_bayes import hierarchical_bayes as hierarchical_bayes
from plures.methods.hierfavg import hierfavg as hierfavg
from plures.methods.hypcluster import hypcluster as hypcluster
from plures.methods.ifca import ifca as ifca
from plures.methods.knnper import knnper as knnper
from plures.methods.l2gd import l2gd as l2gd
from plures.methods.lgfedavg import lgfedavg as lgfedavg
from plures.methods.local import local as local
from plures.methods.lora import lora as lora
from plures.methods.mapper import mapper as mapper
from plures.methods.metadata_clusters import metadata_clusters as metadata_clusters
from plures.methods.mocha import mocha as mocha
from plures.methods.moon import moon as moon
from plures.methods.mrmtl import mrmtl as mrmtl
from plures.methods.perfedavg import perfedavg as perfedavg
from plures.methods.personal_moe import personal_moe as personal_moe
from plures.methods.personal_se import personal_se as personal_se
from plures.methods.pfedhn import pfedhn as pfedhn
from plures.methods.pfedme import pfedme as pfedme
from plures.methods.prior_shift import prior_shift as prior_shift
from plures.methods.qffl import qffl as qffl
from plures.methods.quality import quality as quality
from plures.methods.reptile import reptile as reptile
from plures.methods.scaffold import scaffold as scaffold
from plures.methods.self_distillation import self_distillation as self_distillation
from plures.methods.temperature import temperature as temperature
from plures.methods.threshold import threshold as threshold
from plures.methods.wise_ft import wise_ft as wise_ft

METHODS: Mapping[str, Entry]
